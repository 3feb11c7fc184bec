"""Answer files come from outside: whatever is wrong with one is said, and nothing is guessed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.study import MOST_BYTES, attention, read_answers
from bench.study.page import Study
from bench.types import BenchError

Make = Callable[..., dict[str, Any]]
Save = Callable[..., Path]


def first(raw: dict[str, Any]) -> dict[str, Any]:
    return raw["answers"][0]


BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another study": (lambda r: r.update(study="0" * 16), "answers study '0+'; the key is that of"),
    "another format": (lambda r: r.update(format="x"), "is no bps-bench study answers"),
    "another version": (lambda r: r.update(version=2), "has version 2"),
    "version is a truth value": (
        lambda r: r.update(version=True),
        "'version' must be a valid integer, got True",
    ),
    "missing key": (lambda r: r.pop("rater"), "'rater' is missing"),
    "unknown key": (lambda r: r.update(name="Ann"), "'name' is not a key"),
    "rater's name": (lambda r: r.update(rater="../../x"), "'rater' .* pattern .*16"),
    "long text": (lambda r: r.update(started="9" * 501), "'started' .* at most 500 characters"),
    "answers no list": (lambda r: r.update(answers={}), "'answers' must be a list"),
    "no answers": (lambda r: r.update(answers=[]), "holds 0 answers"),
    "too many": (lambda r: r.update(answers=r["answers"] * 2), "holds 160 answers; the study asks 80"),
    "twice": (lambda r: r["answers"].__setitem__(1, first(r)), "more than once"),
    "an answer is no object": (
        lambda r: r["answers"].__setitem__(0, 3),
        "'answers.0' must be an object, got 3",
    ),
    "unknown question": (lambda r: first(r).update(question="ab" * 6), "answer 1: .* no question ab"),
    "no code": (lambda r: first(r).update(question="bps"), "'answers.0.question' .* pattern"),
    "unknown picture": (lambda r: first(r).update(left="ab" * 6), "answer 1: question .* shows"),
    "a picture twice": (lambda r: first(r).update(left=first(r)["right"]), "shows"),
    "unknown aspect": (lambda r: first(r).update(asked="beauty"), "'asked' must be of"),
    "unknown answer": (
        lambda r: first(r).update(answer="both"),
        "'answers.0.answer' must be 'left', 'right' or 'same'",
    ),
    "negative time": (
        lambda r: first(r).update(seconds=-1),
        "'answers.0.seconds' must be greater than or equal to 0",
    ),
    "time as text": (lambda r: first(r).update(seconds="1"), "'answers.0.seconds' must be a valid number"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused(name: str, study: Study, answers_of: Make, save: Save) -> None:
    raw = answers_of(study.key)
    change, said = BAD[name]
    change(raw)
    path = save(raw)
    with pytest.raises(BenchError, match=said) as error:
        read_answers([path], key=study.key)
    assert str(path) in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[1, 2]", "it must be an object"),
        (b'{"format": "x", "format": "y"}', "has a key twice"),
        (b'{"format": NaN}', "NaN is not a number"),
        (b" " * (MOST_BYTES + 1), "larger than 2,000,000 bytes"),
    ],
)
def test_what_is_no_json_object_is_refused(study: Study, tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "answers.json"
    path.write_bytes(content)
    with pytest.raises(BenchError, match=said):
        read_answers([path], key=study.key)


def test_nothing_a_file_that_is_not_there_and_a_person_twice_are_refused(
    study: Study, answers_of: Make, save: Save, tmp_path: Path
) -> None:
    with pytest.raises(BenchError, match="no answer files"):
        read_answers([], key=study.key)
    with pytest.raises(BenchError, match="cannot read"):
        read_answers([tmp_path / "none.json"], key=study.key)
    twice = [save(answers_of(study.key, rater=3)) for _ in range(2)]
    with pytest.raises(BenchError, match="answers of the same person"):
        read_answers(twice, key=study.key)


def test_good_files_are_read_whole_or_in_part(study: Study, answers_of: Make, save: Save) -> None:
    whole, part = answers_of(study.key, rater=1), answers_of(study.key, rater=2)
    part["answers"] = part["answers"][:7]
    read = read_answers([save(whole), save(part)], key=study.key)
    assert [len(file.answers) for file in read.values()] == [80, 7]
    path, first_file = next(iter(read.items()))
    assert [vars(a) for a in first_file.answers] == json.loads(path.read_text())["answers"]


def test_attention_counts_what_can_be_failed(study: Study, answers_of: Make, save: Save) -> None:
    """Two checks by noise, asked both ways, and two by another item, which fidelity alone can fail."""
    good = save(answers_of(study.key, rater=1))
    idle = save(answers_of(study.key, rater=2, choose=lambda question, asked: None))
    read = read_answers([good, idle], key=study.key)
    assert [attention(one, key=study.key) for one in read.values()] == [(6, 0), (6, 6)]
