"""Whatever a JSON file from outside holds, it is read or refused in one line: never a traceback."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.content import DEEPEST, check_name, check_word, read_json, write_json
from bench.cost import load_timings
from bench.record import load_items, load_record
from bench.training.checkpoint import TrainResult
from bench.types import BenchError
from tests.test_record import example, leaks
from tests.test_timings import timing

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


def damaged(raw: Any, place: str, value: Any) -> Any:
    """A JSON value with another value at a dotted place."""
    *path, last = [int(p) if p.isdigit() else p for p in place.split(".")]
    found = raw = json.loads(json.dumps(raw))
    for part in path:
        found = found[part]
    found[last] = value
    return raw


ITEMS: dict[str, Any] = {
    "ids": ["a", "b"],
    "rows": {"samples": {"fd": [None, 0.5]}},
    "replicates": {"samples": {"fd": [0.5, 1]}},
    "curve": [[1, 0.5]],
    "layer_weights": [[1, 16.0, 15.5]],
}
TIMINGS: dict[str, Any] = {
    "machine": {"processor": "a", "device": "cpu", "threads": 2},
    "entries": [dataclasses.asdict(timing("bps"))],
}
RECORD: dict[str, Any] = dataclasses.asdict(example(leaks=leaks()))
OTHER_KINDS: tuple[Any, ...] = ("text", True, [], {}, [[]], -(2**70))
DAMAGE: dict[str, tuple[str, tuple[Any, ...]]] = {
    "seed": ("record", (*OTHER_KINDS, None, 0.5)),
    "run_id": ("record", ("../x", "a\u202eb", "$(a)", "", 3, None)),
    "method": ("record", ("<img onerror=a>", "a b", 3)),
    "task": ("record", ("a\u00a0b", "=1", None)),
    "suite": ("record", ("..", "javascript:a", {})),
    "budget": ("record", ("|", ["standard"])),
    "options": ("record", (3, [], None)),
    "config": ("record", (3, [], "bps", None)),
    "protocol": ("record", (3, [])),
    "protocol.sampler": ("record", (3, {"steps": "20"}, {"guidance": True})),
    "protocol.budget": ("record", ([], "short")),
    "environment.device": ("record", (3, None, [])),
    "changes": ("record", ({"guidance": "3"}, {"steps": -1}, {"other": 1}, [])),
    "metrics.sketch_f1.value": ("record", (*OTHER_KINDS,)),
    "metrics.sketch_f1.n": ("record", (*OTHER_KINDS, -1, 0.5, None)),
    "metrics.sketch_f1.better": ("record", ("best", 1)),
    "rows": ("record", (3, {"samples": []}, {"a/b": {}}, {"samples": {"fd": 3}})),
    "cost.macs": ("record", (*OTHER_KINDS, -1, None)),
    "cost.train_seconds": ("record", (*OTHER_KINDS, -1)),
    "splits.overlap": ("record", (*OTHER_KINDS, None)),
    "leaks.training.items": ("record", (*OTHER_KINDS,)),
    "leaks.training.findings": ("record", ("text", [3], {})),
    "artifacts": ("record", ([], {"a": 3})),
    "ids": ("items", ("ab", [1, 2], ["a", "../b"], ["a", "a"], ["a"], {}, None)),
    "rows.samples": ("items", (3, [], None)),
    "rows.samples.fd": ("items", ("ab", {}, [0.5], [0.5, "1"], [0.5, True], [[0.5], [0.5]], None)),
    "replicates": ("items", (3, [], None, {"samples": 3})),
    "replicates.samples.fd": ("items", ("ab", [0.5], [0.5, None], [0.5, "1"], 3)),
    "curve": ("items", (3, [3], [[1]], [[1, None]], [["1", 0.5]], [[-1, 0.5]])),
    "layer_weights": ("items", (3, [[1, 2]], [[1, "2", 3]])),
    "entries": ("timings", (3, {}, [3], [{}], None)),
    "entries.0.sample_seconds_per_image": ("timings", (*OTHER_KINDS, -1, None)),
    "entries.0.train_images_per_second": ("timings", (*OTHER_KINDS, -1)),
    "entries.0.rounds": ("timings", (*OTHER_KINDS, 0.5)),
    "entries.0.code": ("timings", ([], {"a": 3})),
    "entries.0.setup": ("timings", ([], 3)),
    "entries.0.planned_memory_bytes": ("timings", (*OTHER_KINDS, -1)),
    "machine": ("timings", (3, [], None)),
}


@pytest.mark.parametrize("place", DAMAGE)
def test_a_damaged_file_of_results_is_refused_with_the_place(tmp_path: Path, place: str) -> None:
    file, values = DAMAGE[place]
    write, read = FILES[file]
    for value in values:
        write_json(tmp_path / f"{file}.json", damaged(write, place, value))
        with pytest.raises(BenchError, match=rf"{file}\.json") as caught:
            read(tmp_path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500 + len(str(tmp_path))


FILES: dict[str, tuple[Any, Callable[[Path], Any]]] = {
    "record": (RECORD, load_record),
    "items": (ITEMS, load_items),
    "timings": (TIMINGS, load_timings),
}


@pytest.mark.parametrize("file", FILES)
def test_whole_files_of_results_are_read_and_parts_are_missed(tmp_path: Path, file: str) -> None:
    write, read = FILES[file]
    write_json(tmp_path / f"{file}.json", write)
    assert read(tmp_path) is not None
    for wrong in (None, 3, [], {}, [write], {**write, "more": 1}):
        write_json(tmp_path / f"{file}.json", wrong)
        with pytest.raises(BenchError, match=rf"{file}\.json"):
            read(tmp_path)


WORK: dict[str, tuple[Any, dict[str, Any], dict[str, tuple[Any, ...]]]] = {
    "train": (
        TrainResult,
        {"steps": 2, "images": 4, "seconds": 0.5, "dead": 0, "curve": [[1, 0.5], [2, 0.4]], "starts": []},
        {
            "images": (*OTHER_KINDS, None, -1),
            "seconds": (*OTHER_KINDS, None, -1),
            "dead": (*OTHER_KINDS, None),
            "curve": (3, None, [3], [[1]], [[1, "2"]]),
            "starts": (3, ["one"], None),
            "trained_in": (3, "../x"),
        },
    ),
}


@pytest.mark.parametrize("file", WORK)
def test_a_damaged_file_of_a_begun_run_is_refused(tmp_path: Path, file: str) -> None:
    kind, whole, damage = WORK[file]
    path = tmp_path / f"{file}.json"
    write_json(path, whole)
    value = read_json(path, of=kind)
    kept = vars(value) if dataclasses.is_dataclass(value) else value
    assert json.loads(json.dumps({name: kept[name] for name in whole})) == whole
    wrong = [{**whole, place: value} for place, values in damage.items() for value in values]
    for value in (None, 3, [], {}, *wrong):
        write_json(path, value)
        with pytest.raises(BenchError, match=rf"{file}\.json"):
            read_json(path, of=kind)
