"""Every command that README and docs show is one that the program takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
RUNNER = CliRunner()


def blocks(page: Path) -> list[str]:
    """The blocks of commands of a page, in order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.S | re.M)
    return [block for language, block in found if language in ("", "sh", "bash", "console")]


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of every `bench ...` in a page's blocks of commands, with examples for variables."""
    for block in blocks(page):
        for line in block.replace("\\\n", " ").splitlines():
            if found := re.search(r"(?:^|\s)bench\s(.*)", line):
                words = shlex.split(re.sub(r"[\[\]]", "", found[1]).partition(" > ")[0], comments=True)
                yield [{"$seed": "0", "$method": "bps"}.get(word, word) for word in words]


SHOWN = [(page.name, words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize(
    "page,words", SHOWN, ids=lambda value: " ".join(value) if value != str(value) else value
)
def test_every_command_shown_is_taken(
    page: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("method: bps\n")
    record = tmp_path / "results/runs/RUN/record.json"
    record.parent.mkdir(parents=True)
    record.write_text('{"run_id": "x", "config": {"method": "controlnet"}}')
    command: Any = typer.main.get_command(cli.app)
    rest, name = list(words), "bench"
    while hasattr(command, "commands"):
        name = rest.pop(0)
        assert name in command.commands, f"{page} shows bench {name}"
        command = command.commands[name]
    command.make_context(name, list(rest))
    if any(p.name == "print_config" for p in command.params) and "--print-config" not in words:
        done = RUNNER.invoke(cli.app, [*words, "--print-config"])
        assert done.exit_code == 0, done.output
    if words[0] == "plan" and "coco17" in words:
        assert "--precision" in words, "fp32 takes sixteen times as long"


def test_pages_show_commands() -> None:
    assert len(SHOWN) > 60 and {"README.md", "reproduce.md", "commands.md"} <= {page for page, _ in SHOWN}
