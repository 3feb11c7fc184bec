"""Answers in, preference rates and strengths out: as values, as JSON and as Markdown."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.metrics.intervals import Interval
from bench.reporting.grid import Grid, Text, to_markdown
from bench.reporting.names import MISSING, brackets, number
from bench.study.answers import LEFT, SAME, Answer, Answers, attention, read_answers
from bench.study.key import Key, read_key
from bench.study.strengths import (
    Comparisons,
    bradley_terry,
    rate_interval,
    resampled_wins,
    wins,
)
from bench.types import BenchError

ALLOWED = 0.25
REPLICATES = 1000
_FEW_RATERS = 5


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Answers about two methods; rate: of the first, ties as half; None without an answer."""

    first: str
    second: str
    preferred_first: int
    no_difference: int
    preferred_second: int
    rate: Interval | None


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A method against all others; strength: Bradley-Terry, geometric mean 1, its ends None where
    one rater saw one item."""

    method: str
    answers: int
    rate: Interval | None
    strength: float
    strength_low: float | None
    strength_high: float | None


@dataclass(frozen=True, kw_only=True)
class Aspect:
    """Results of one question; left: how often the left picture was preferred among decided answers."""

    name: str
    answers: int
    no_difference: int
    left: float | None
    standings: tuple[Standing, ...]
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A person whose answers do not count: failed attention checks, of how many."""

    rater: str
    file: str
    checks: int
    failed: int


@dataclass(frozen=True, kw_only=True)
class Results:
    """What a study found; raters: how many count."""

    key: Key
    raters: int
    left_out: tuple[LeftOut, ...]
    aspects: tuple[Aspect, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without the questions of the key."""
        values = dataclasses.asdict(self)
        key = values.pop("key")
        del key["questions"]
        return {"study": key, **values}


def score_study(
    files: Sequence[Path],
    *,
    key: Path,
    allowed: float = ALLOWED,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> Results:
    """Score answer files against a key.

    allowed: the share of a person's attention checks that may fail; whoever fails more, or answered
    none where the study has some, is left out and counted. replicates, seed: of the bootstrap.
    BenchError for a bad file, and where nobody is left.
    """
    if not 0 <= allowed <= 1:
        raise BenchError(f"the allowed share of failed checks must be in 0 to 1, got {allowed:g}.")
    if replicates < 20:
        raise BenchError(f"the bootstrap needs at least 20 replicates, got {replicates}.")
    opened = read_key(key)
    everyone = read_answers(files, key=opened)
    out = [(one, _left_out(one, opened, allowed)) for one in everyone]
    kept = [one for one, reason in out if reason is None]
    left_out = tuple(reason for _, reason in out if reason is not None)
    if not kept:
        raise BenchError(
            f"all {len(everyone)} files fail too many attention checks. Allow more with "
            "--allow-failed, or ask again."
        )
    aspects = tuple(_aspect(name, kept, opened, replicates=replicates, seed=seed) for name in opened.aspects)
    notes = tuple(_notes(len(kept), aspects))
    return Results(key=opened, raters=len(kept), left_out=left_out, aspects=aspects, notes=notes)


def _left_out(one: Answers, key: Key, allowed: float) -> LeftOut | None:
    there = any(q.checks(a) for q in key.questions.values() for a in key.aspects)
    checks, failed = attention(one, key=key)
    if not there or (checks and failed <= allowed * checks):
        return None
    return LeftOut(rater=one.rater, file=one.path.name, checks=checks, failed=failed)


def _aspect(name: str, kept: Sequence[Answers], key: Key, *, replicates: int, seed: int) -> Aspect:
    given = [
        (row, answer)
        for row, one in enumerate(kept)
        for answer in one.answers
        if answer.asked == name and not key.questions[answer.question].check
    ]
    decided = [answer for _, answer in given if answer.answer != SAME]
    table = _comparisons(given, key)
    counts, drawn = wins(table)[0], resampled_wins(table, replicates=replicates, seed=seed)
    return Aspect(
        name=name,
        answers=len(given),
        no_difference=len(given) - len(decided),
        left=sum(a.answer == LEFT for a in decided) / len(decided) if decided else None,
        standings=_standings(tuple(key.methods), table, counts, drawn),
        pairs=tuple(_pairs(tuple(key.methods), table, counts, drawn)),
    )


def _comparisons(given: Sequence[tuple[int, Answer]], key: Key) -> Comparisons:
    """Return answers as arrays; the first of each is the method that comes first in the key."""
    place = {name: row for row, name in enumerate(key.methods)}
    items = {item: n for n, item in enumerate(sorted({q.item for q in key.questions.values()}))}
    lines = []
    for rater, answer in given:
        question = key.questions[answer.question]
        first, second = sorted(place[name] for name in question.sides.values())
        chosen = None if answer.preferred is None else place[question.sides[answer.preferred]]
        score = 0.5 if chosen is None else float(chosen == first)
        lines.append((rater, items[question.item], first, second, score))
    columns = np.asarray(lines, dtype=np.float64).reshape(-1, 5).T
    rater, item, first, second = columns[:4].astype(np.int64)
    return Comparisons(
        rater=rater, item=item, first=first, second=second, score=columns[4], methods=len(place)
    )


def _standings(
    names: Sequence[str], table: Comparisons, counts: np.ndarray, drawn: np.ndarray | None
) -> tuple[Standing, ...]:
    strengths = bradley_terry(counts[None])[0]
    ends = None if drawn is None else np.quantile(bradley_terry(drawn), [0.025, 0.975], axis=0)
    found = []
    for row, name in enumerate(names):
        resampled = _rates(drawn, lambda w, row=row: (w[:, row].sum(1), w[:, :, row].sum(1)))
        rate = rate_interval(counts[row].sum(), counts[:, row].sum(), resampled=resampled)
        found.append(
            Standing(
                method=name,
                answers=int(((table.first == row) | (table.second == row)).sum()),
                rate=rate,
                strength=float(strengths[row]),
                strength_low=None if ends is None else float(ends[0, row]),
                strength_high=None if ends is None else float(ends[1, row]),
            )
        )
    return tuple(found)


def _pairs(
    names: Sequence[str], table: Comparisons, counts: np.ndarray, drawn: np.ndarray | None
) -> Iterator[Pair]:
    for i, j in itertools.combinations(range(len(names)), 2):
        score = table.score[(table.first == i) & (table.second == j)]
        resampled = _rates(drawn, lambda w, i=i, j=j: (w[:, i, j], w[:, j, i]))
        yield Pair(
            first=names[i],
            second=names[j],
            preferred_first=int((score == 1).sum()),
            no_difference=int((score == 0.5).sum()),
            preferred_second=int((score == 0).sum()),
            rate=rate_interval(counts[i, j], counts[j, i], resampled=resampled),
        )


def _rates(drawn: np.ndarray | None, sides: Any) -> np.ndarray:
    """Return won / (won + lost) of each resample, NaN where there is neither; empty without any."""
    if drawn is None:
        return np.empty(0)
    won, lost = sides(drawn)
    played = won + lost
    return np.divide(won, played, out=np.full(len(won), np.nan), where=played > 0)


def _notes(raters: int, aspects: Sequence[Aspect]) -> Iterator[str]:
    """Say what the numbers cannot."""
    if raters == 1:
        yield "One rater: intervals are over items alone and say nothing of other people."
    elif raters < _FEW_RATERS:
        yield f"{raters} raters: too few for an interval that speaks of people in general."
    for aspect in aspects:
        for pair in aspect.pairs:
            about = f"{aspect.name}: {pair.first} against {pair.second}"
            if pair.rate is None:
                yield f"{about}: no answers."
            elif pair.rate.value in (0.0, 1.0):
                yield (
                    f"{about}: all answers agree, so that the strengths rest on their prior (one tie "
                    "between every two methods); read the rate and its interval."
                )


def to_text(results: Results) -> str:
    """Return the results as Markdown: who counts, then for each question rates and strengths."""
    key = results.key
    people = f"{results.raters} {'rater' if results.raters == 1 else 'raters'}"
    lines = [
        f"# {key.title}\n",
        f"Study {key.study}: {key.suite} / {key.task}, protocol {key.protocol[:12]}, samples of seed "
        f"{key.seed}. {people}; {len(results.left_out)} left out for failed attention checks.\n",
    ]
    lines += [
        f"- left out: {one.file}, {one.failed} of {one.checks} checks failed"
        if one.checks
        else f"- left out: {one.file}, no attention check answered"
        for one in results.left_out
    ]
    lines += [""] if results.left_out else []
    for aspect in results.aspects:
        lines += [f"## {aspect.name}\n", to_markdown(_method_grid(aspect))]
        lines += [to_markdown(_pair_grid(aspect))]
    lines += [f"- {note}" for note in results.notes]
    return "\n".join(lines).rstrip() + "\n"


def _method_grid(aspect: Aspect) -> Grid:
    body = tuple(
        (Text(main=s.method), _percent(s.rate), _strength(s), Text(main=str(s.answers)))
        for s in aspect.standings
    )
    left = MISSING if aspect.left is None else f"{100 * aspect.left:.0f}%"
    caption = (
        f"Preferred: share of answers against all other methods, a tie as half, with 95% intervals. "
        f"Strength: Bradley-Terry, geometric mean 1, one tie added between every two methods; "
        f"bootstrap over raters and items. {aspect.answers} answers, {aspect.no_difference} without a "
        f"difference; the left picture was preferred in {left} of the others."
    )
    return Grid(header=("method", "preferred", "strength", "answers"), body=body, caption=caption)


def _pair_grid(aspect: Aspect) -> Grid:
    body = tuple(
        (
            Text(main=pair.first),
            Text(main=pair.second),
            _percent(pair.rate),
            *(Text(main=str(n)) for n in (pair.preferred_first, pair.no_difference, pair.preferred_second)),
        )
        for pair in aspect.pairs
    )
    header = ("method", "against", "preferred", "first", "no difference", "second")
    caption = (
        "Preferred: the first method, a tie as half; the wider of Wilson's interval and of the "
        "bootstrap over raters and items. Beside it, the answers."
    )
    return Grid(header=header, body=body, caption=caption, left=2)


def _percent(rate: Interval | None) -> Text:
    if rate is None:
        return Text(main=MISSING)
    return Text(main=f"{100 * rate.value:.0f}%", beside=brackets(100 * rate.low, 100 * rate.high, 0))


def _strength(one: Standing) -> Text:
    beside = brackets(one.strength_low, one.strength_high, 2)
    return Text(main=number(one.strength, 2), beside=beside)
