"""Text on its way out to a terminal: what stands in files can neither steer it nor break it."""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from typing import Any

import typer

_RARE = re.compile(r"[^\x20-\x7e\n\t]")


def say(text: object) -> None:
    """Print a text and a newline, made `visible`."""
    typer.echo(visible(str(text)))


def aside(text: str) -> None:
    """Say something beside the output proper, on standard error."""
    typer.echo(visible(text), err=True)


def to_json(value: Any) -> str:
    """Return a value as JSON in ASCII, which every terminal shows and none obeys."""
    return json.dumps(value, indent=1)


def visible(text: str) -> str:
    r"""Return the text with control characters, and whatever else has no shape, written out as `\x1b`."""
    return _RARE.sub(_written_out, text)


def _written_out(found: re.Match[str]) -> str:
    character = found[0]
    shown = character.isprintable() or unicodedata.category(character) == "Zs"
    return character if shown else character.encode("unicode_escape").decode()


def substitute_what_it_lacks() -> None:
    """Let this program's output print a substitute for characters that its encoding does not have."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
