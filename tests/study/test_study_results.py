"""From answer files to rates and strengths: sides do not matter, careless people do not count."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from bench.study import KeyQuestion, write_key
from bench.study.page import Study
from bench.study.results import Results, score_study, to_text
from bench.types import BenchError
from cli import app

Make = Callable[..., dict[str, Any]]
Save = Callable[..., Path]
TRUTH = {"bps": 3.0, "controlnet": 1.0, "text-only": 1 / 3}


@pytest.fixture
def key(study: Study, tmp_path: Path) -> Path:
    write_key(tmp_path / "key.json", study.key)
    return tmp_path / "key.json"


def by_strength(seed: int) -> Callable[[KeyQuestion, str], str | None]:
    """Pass every check and prefer by the Bradley-Terry model with known strengths."""
    draw = np.random.default_rng(seed)

    def choose(question: KeyQuestion, asked: str) -> str | None:
        if question.check:
            return question.real
        (one, a), (other, b) = sorted(question.sides.items(), key=lambda side: side[1])
        return one if draw.random() < TRUTH[a] / (TRUTH[a] + TRUTH[b]) else other

    return choose


def scored(paths: list[Path], key: Path, **options: Any) -> Results:
    return score_study(paths, key=key, replicates=100, **options)


def test_known_strengths_come_back_and_sides_do_not_matter(
    study: Study, answers_of: Make, save: Save, key: Path
) -> None:
    def crowd(mirrored: bool) -> list[Path]:
        return [
            save(answers_of(study.key, rater=n, choose=by_strength(n), mirrored=mirrored)) for n in range(16)
        ]

    results = scored(crowd(False), key)
    for aspect in results.aspects:
        assert aspect.answers == 16 * 36 and 0.3 < (aspect.left or 0) < 0.7
        for standing in aspect.standings:
            assert standing.answers == 16 * 24
            assert standing.strength == pytest.approx(TRUTH[standing.method], rel=0.3)
            low, high = standing.strength_low, standing.strength_high
            assert low is not None and high is not None and low < standing.strength < high
    mirrored = scored(crowd(True), key)
    for one, other in zip(results.aspects, mirrored.aspects, strict=True):
        assert (one.standings, one.pairs) == (other.standings, other.pairs)
        assert (one.left or 0) + (other.left or 0) == pytest.approx(1)


def test_counts_rates_and_strengths_of_a_clear_preference(
    study: Study, answers_of: Make, save: Save, key: Path
) -> None:
    """One rater who always prefers the first by name: 12 of 12 in each pair."""
    results = scored([save(answers_of(study.key))], key)
    best, middle, worst = results.aspects[0].standings
    rates = [s.rate.value for s in (best, middle, worst) if s.rate is not None]
    assert rates == [1.0, 0.5, 0.0]
    assert best.strength > middle.strength == pytest.approx(1) and worst.strength > 0
    for pair in results.aspects[0].pairs:
        counts = (pair.preferred_first, pair.no_difference, pair.preferred_second)
        assert counts == (12, 0, 0) and pair.rate is not None
        assert pair.rate.low == pytest.approx(0.7575, abs=1e-4)  # Wilson, 12 of 12
    assert any("One rater" in note for note in results.notes)
    assert any("all answers agree" in note for note in results.notes)


def test_whoever_fails_the_checks_is_left_out_and_counted(
    study: Study, answers_of: Make, save: Save, key: Path
) -> None:
    def idle(question: KeyQuestion, asked: str) -> str | None:
        return None

    def unchecked(raw: dict[str, Any]) -> dict[str, Any]:
        checks = {c for c, q in study.key.questions.items() if q.check}
        return {**raw, "answers": [a for a in raw["answers"] if a["question"] not in checks]}

    good = [save(answers_of(study.key, rater=n, choose=by_strength(n))) for n in range(3)]
    careless = save(answers_of(study.key, rater=8, choose=idle))
    dodger = save(unchecked(answers_of(study.key, rater=9)))
    alone, crowd = scored(good, key), scored([*good, careless, dodger], key)
    assert crowd.aspects == alone.aspects and crowd.raters == 3
    assert [(o.rater[-1], o.checks, o.failed) for o in crowd.left_out] == [("8", 6, 6), ("9", 0, 0)]
    text = to_text(crowd)
    assert "2 left out" in text and "6 of 6 checks failed" in text
    lenient = scored([*good, careless], key, allowed=1.0)
    assert lenient.raters == 4 and not lenient.left_out
    with pytest.raises(BenchError, match="all 1 files fail too many attention checks"):
        scored([careless], key)


def test_the_command_prints_a_table_or_json_and_names_bad_files(
    study: Study, answers_of: Make, save: Save, key: Path
) -> None:
    def score(*args: object) -> Any:
        return CliRunner().invoke(app, ["study", "score", *map(str, args), "--key", str(key)])

    path = save(answers_of(study.key))
    text = score(path).stdout
    assert "| bps | 100%" in text and "## fidelity" in text and "## quality" in text
    values = json.loads(score(path, "--json").stdout)
    assert values["raters"] == 1 and values["study"]["study"] == study.key.study
    assert values["aspects"][0]["pairs"][0]["rate"]["value"] == 1.0
    path.write_text("{}")
    answer = score(path)
    assert answer.exit_code == 2 and f"error: {path}" in answer.output
    assert "Traceback" not in answer.output
    assert score(path, "--allow-failed", 2).exit_code == 2
