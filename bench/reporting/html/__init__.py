"""The report as one offline HTML page: no server, no request, no build step."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from bench.reporting.ablation_page import AblationSection
from bench.reporting.html.data import PICTURE_BUDGET, page_data
from bench.reporting.page import Section, Suite

__all__ = ["PICTURE_BUDGET", "data_block", "html_page", "page_data"]

_PLACE = re.compile(r"\{\{(\w+)\}\}")
# What would end the script block or open a comment in it, and the two line ends that JSON allows
# in text and older JavaScript does not.
_UNSAFE = {letter: f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029"}


def html_page(
    sections: Sequence[Section],
    suites: Sequence[Suite],
    ablations: Sequence[AblationSection] = (),
    *,
    budget: int = PICTURE_BUDGET,
) -> str:
    """Return the page; a pure function of its parts, their figures and the contact sheets of their runs.

    budget: bytes that pictures may take, see `page_data`.
    """
    data = page_data(sections, suites, ablations, budget=budget)
    script, style = _asset("page.js"), _asset("page.css")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; "
        f"script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy,
        "title": html.escape(data["title"]),
        "style": style,
        "data": data_block(data),
        "script": script,
    }
    return fill(_asset("page.html"), parts)


def data_block(data: Any) -> str:
    """Return data as JSON that is safe inside an HTML script block, whatever its texts hold."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return "".join(_UNSAFE.get(letter, letter) for letter in text)


def fill(template: str, parts: Mapping[str, str]) -> str:
    """Return the template with each {{name}} replaced once: what goes in is not read again."""
    return _PLACE.sub(lambda found: parts[found[1]], template)


def _asset(name: str) -> str:
    return resources.files("bench.reporting.html").joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """Return the hash by which a content policy names an inline block."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
