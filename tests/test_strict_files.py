"""Whatever a JSON file from outside holds, it is read or refused in one line: never a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.content import read_json
from bench.strict import DEEPEST, check_name, check_word
from bench.types import BenchError

NO_JSON = {
    "nothing": b"",
    "another encoding": b'{"a": "\xff"}',
    "another encoding, marked": '{"a": 1}'.encode("utf-16"),
    "nested beyond the stack": b"[" * 100_000,
    "nested too deep": b"[" * (DEEPEST + 2) + b"]" * (DEEPEST + 2),
    "half a character": b'{"a": "\\ud800"}',
    "half a character in a key": b'{"\\udfff": 1}',
    "a null character": b'{"a": ["\\u0000"]}',
    "too many digits": b'{"a": ' + b"9" * 5000 + b"}",
    "a key twice": b'{"a": {"b": 1, "b": 2}}',
}
NOT_OURS = {
    "not a number": b'{"a": NaN}',
    "infinite": b"[-Infinity]",
    "a number too large": b'{"a": [0, 1e999]}',
    "a number too low": b'{"a": [0, -1e40]}',
    "an integer too large": b'{"a": [0, 1' + b"0" * 30 + b"]}",
    "an escape sequence": b'{"a": "\\u001b[2J"}',
    "an escape sequence of one byte": '{"a": "\x9b2J"}'.encode(),
    "a line end in a key": b'{"a\\nb": 1}',
    "a delete": b'{"a": "\x7f"}',
}


@pytest.mark.parametrize("raw", [*NO_JSON.values(), *NOT_OURS.values()], ids=[*NO_JSON, *NOT_OURS])
def test_what_no_file_of_ours_holds_is_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(raw)
    with pytest.raises(BenchError, match="not valid JSON") as caught:
        read_json(path)
    said = str(caught.value)
    assert str(path) in said and said.isprintable() and len(said) < 400 + len(str(path))


def test_files_of_other_programs_may_hold_infinities_and_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b'{"a": -Infinity, "b": "one\\ntwo", "c": 1e999}')
    assert read_json(path, loose=True) == {"a": float("-inf"), "b": "one\ntwo", "c": float("inf")}
    for raw in NO_JSON.values():
        path.write_bytes(raw)
        with pytest.raises(BenchError, match="not valid JSON"):
            read_json(path, loose=True)


def test_a_file_too_large_and_what_is_no_file_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b"[1, 2, 3]")
    assert read_json(path, most_bytes=9) == [1, 2, 3]
    for wrong, most, said in ((path, 8, "larger than 8 bytes"), (tmp_path, 8, "is not a file")):
        with pytest.raises(BenchError, match=said):
            read_json(wrong, most_bytes=most)


def test_a_value_of_another_type_is_refused_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"a": {"b": [1, "two"]}}))
    with pytest.raises(BenchError, match=r"x\.json: 'a\.b\.1' must be .*integer, got 'two'\. Restore"):
        read_json(path, of=dict[str, dict[str, list[int]]])


@pytest.mark.parametrize("name", ["bps", "text-only", "standard-160", "dpm++", "v1.5_b", "0"])
def test_words_of_methods_and_tasks_are_taken(name: str) -> None:
    assert check_word(name) == check_name(name) == name


@pytest.mark.parametrize("name", ["red heart", "1F481-200D", "été", "a..b", "=1"])
def test_printable_ids_are_taken(name: str) -> None:
    assert check_name(name) == name


BAD_NAMES: list[Any] = ["", ".", "..", "../x", "a/b", "a\\b", "a\nb", "a\x1b[2J", " a", "a\u202eb", "a" * 201]


@pytest.mark.parametrize("name", [*BAD_NAMES, "\ud800", "\x00"])
def test_names_that_leave_their_folder_or_cannot_be_shown_are_refused(name: str) -> None:
    for check in (check_name, check_word):
        with pytest.raises(BenchError, match="is no") as caught:
            check(name)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["-a", "a b", "a<b>", "$(a)", "=1", "é", "bps\n"])
def test_words_hold_nothing_that_a_shell_or_page_reads(name: str) -> None:
    with pytest.raises(BenchError, match="is no name"):
        check_word(name)
