"""Answers in, preference rates and Bradley-Terry strengths out, with intervals over raters and items."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.metrics.intervals import Interval, wilson_interval
from bench.reporting import words
from bench.reporting.render import filled
from bench.study import SAME, Answers, Key, attention, read_answers, read_key
from bench.types import BenchError

ALLOWED = 0.25
REPLICATES = 1000
_ENDS = [0.025, 0.975]
_FEW_RATERS = 5
_TOLERANCE = 1e-9
_MOST_ROUNDS = 20_000
_CHUNK = 50  # replicates held at once: many raters would fill the memory


@dataclass(frozen=True)
class Pair:
    """Answers about two methods; rate: of the first, ties as half; None without an answer."""

    first: str
    second: str
    preferred_first: int
    no_difference: int
    preferred_second: int
    rate: Interval | None


@dataclass(frozen=True)
class Standing:
    """A method against all others. strength: Bradley-Terry, of mean 1; without ends of one rater and item."""

    method: str
    answers: int
    rate: Interval | None
    strength: float
    strength_low: float | None
    strength_high: float | None


@dataclass(frozen=True)
class Aspect:
    """Results of one question; left: how often the left picture was preferred among decided answers."""

    name: str
    answers: int
    no_difference: int
    left: float | None
    standings: tuple[Standing, ...]
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class LeftOut:
    """A person whose answers do not count: failed attention checks, of how many."""

    rater: str
    file: str
    checks: int
    failed: int


@dataclass(frozen=True)
class Results:
    """What the answers to a study say; raters: how many count."""

    key: Key
    raters: int
    left_out: tuple[LeftOut, ...]
    aspects: tuple[Aspect, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without the questions of the key."""
        values = dataclasses.asdict(self)
        hidden = ("questions", "format", "version")
        key = {name: value for name, value in values.pop("key").items() if name not in hidden}
        return {"study": {**key, "methods": self.key.names}, **values}


@dataclass(frozen=True)
class Comparisons:
    """n answers as arrays [n]: rater, item, first, second (rows of methods); score of the first.

    score: 1 where the first was preferred, 0 where the second was, 0.5 where neither was. methods:
    how many there are.
    """

    rater: np.ndarray
    item: np.ndarray
    first: np.ndarray
    second: np.ndarray
    score: np.ndarray
    methods: int


def wins(answers: Comparisons, *, weights: np.ndarray | None = None) -> np.ndarray:
    """Return how often each method was preferred to each other, ties as half, [R,M,M] float64.

    weights: of the answers in R resamples, [R,n]; None for one, all 1. Entry [r,i,j]: i over j.
    """
    m, n = answers.methods, len(answers.score)
    table = np.zeros((n, m * m))
    table[np.arange(n), answers.first * m + answers.second] = answers.score
    table[np.arange(n), answers.second * m + answers.first] = 1 - answers.score
    rows = np.ones((1, n)) if weights is None else weights
    return np.asarray((rows @ table).reshape(len(rows), m, m))


def bradley_terry(won: np.ndarray) -> np.ndarray:
    """Return Bradley-Terry strengths [R,M] of wins [R,M,M]: P(i over j) = s_i / (s_i + s_j).

    Their geometric mean is 1. One tie is added between every two methods, a weak pull to equal
    strengths that keeps a method finite that won or lost everything: two methods have the ratio
    (w + 1/2) / (l + 1/2), the estimate under Jeffreys' prior. Found by the MM iteration of Hunter
    (2004), "MM algorithms for generalized Bradley-Terry models"; BenchError where it does not settle.
    """
    won = won + (1 - np.eye(won.shape[-1])) / 2
    played, total = won + won.swapaxes(-1, -2), won.sum(axis=-1)
    strengths = np.ones(won.shape[:-1])
    for _ in range(_MOST_ROUNDS):
        new = total / (played / (strengths[..., :, None] + strengths[..., None, :])).sum(axis=-1)
        new /= np.exp(np.log(new).mean(axis=-1, keepdims=True))
        moved = float(np.abs(new / strengths - 1).max())
        strengths = new
        if moved < _TOLERANCE:
            return strengths
    raise BenchError(f"the strengths still move by {moved:.1e} after {_MOST_ROUNDS} rounds.")


def resampled_wins(answers: Comparisons, *, replicates: int, seed: int) -> np.ndarray | None:
    """Return `wins` of resampled raters and, crossed with them, items, [R,M,M].

    An answer weighs how often its rater was drawn times how often its item was, so intervals speak
    of other raters and other items (Owen 2007, "The pigeonhole bootstrap"; rather too wide than too
    narrow). Of one rater, items alone vary; None where there is one item too. Measured for strengths of
    three methods with 95% asked, 5 to 20 raters and 40 pairs: 95% to 96% where raters and items differ
    (standard deviation 0.5 in log strength), 99.8% where they do not.
    """
    draw = np.random.default_rng(seed)
    factors = [np.unique(labels, return_inverse=True) for labels in (answers.rater, answers.item)]
    factors = [(levels, where) for levels, where in factors if len(levels) > 1]
    if not factors:
        return None
    parts = []
    for start in range(0, replicates, _CHUNK):
        weights = np.ones((min(_CHUNK, replicates - start), len(answers.score)))
        for levels, where in factors:
            shares = np.full(len(levels), 1 / len(levels))
            weights *= draw.multinomial(len(levels), shares, size=len(weights))[:, where]
        parts.append(wins(answers, weights=weights))
    return np.concatenate(parts)


def rate_interval(won: float, lost: float, *, resampled: np.ndarray) -> Interval | None:
    """Return won / (won + lost) with a 95% interval; None without any answer.

    The wider, end by end, of two: Wilson's (1927), which takes answers as independent, and the
    percentiles of resampled rates (NaN where a resample holds no such answer), which know that
    answers share raters and items but are empty where all agree.
    """
    if not won + lost:
        return None
    rate = won / (won + lost)
    wilson, known = wilson_interval(rate, round(won + lost)), resampled[np.isfinite(resampled)]
    low, high = np.quantile(known, _ENDS) if len(known) else (rate, rate)
    return Interval(value=rate, low=min(wilson.low, float(low)), high=max(wilson.high, float(high)))


def score_study(
    files: Sequence[Path], *, key: Path, allowed: float = ALLOWED, seed: int = 0, replicates: int = REPLICATES
) -> Results:
    """Score answer files against a key.

    allowed: the share of a person's attention checks that may fail; whoever fails more, or answered
    none where the study has some, is left out and counted. replicates, seed: of the bootstrap.
    BenchError for a bad file, and where nobody is left.
    """
    if not 0 <= allowed <= 1:
        raise BenchError(f"the allowed share of failed checks must be in 0 to 1, got {allowed:g}.")
    study = read_key(key)
    checked = any(q.checks(a) for q in study.questions.values() for a in study.aspects)
    kept, left_out = [], list[LeftOut]()
    for path, answers in read_answers(files, key=study).items():
        checks, failed = attention(answers, key=study)
        if checked and not (checks and failed <= allowed * checks):
            left_out.append(LeftOut(answers.rater, path.name, checks, failed))
        else:
            kept.append(answers)
    if not kept:
        raise BenchError(f"all {len(left_out)} files fail too many attention checks. See --allow-failed.")
    aspects = tuple(_aspect(name, kept, study, replicates, seed) for name in study.aspects)
    notes = tuple(_notes(len(kept), aspects))
    return Results(study, len(kept), tuple(left_out), aspects, notes)


def _aspect(name: str, kept: Sequence[Answers], key: Key, replicates: int, seed: int) -> Aspect:
    """Score one question; of two methods, the first is the one that comes first in the key."""
    place = {method: row for row, method in enumerate(key.names)}
    items = {item: n for n, item in enumerate(sorted({q.item for q in key.questions.values()}))}
    answers = [(r, a, key.questions[a.question]) for r, file in enumerate(kept) for a in file.answers]
    answers = [(r, a, question) for r, a, question in answers if a.asked == name and not question.check]
    rows = []
    for rater, answer, question in answers:
        one, two = sorted(place[method] for method in question.sides.values())
        score = 1 if answer.preferred is None else 2 * (place[question.sides[answer.preferred]] == one)
        rows.append((rater, items[question.item], one, two, score))
    rater_of, item_of, one_of, two_of, halves = np.array(rows, dtype=np.int64).reshape(-1, 5).T
    table = Comparisons(rater_of, item_of, one_of, two_of, halves / 2, len(place))
    counts, drawn = wins(table), resampled_wins(table, replicates=replicates, seed=seed)
    strengths = bradley_terry(counts)[0].tolist()
    ends: Any = [[None] * len(place)] * 2
    if drawn is not None:
        ends = np.quantile(bradley_terry(drawn), _ENDS, axis=0).tolist()

    def rate(won: Any, lost: Any) -> Interval | None:
        """Of wins at these places of [R,M,M], summed."""
        resampled = np.empty(0)
        if drawn is not None:
            above, played = drawn[won].sum(-1), drawn[won].sum(-1) + drawn[lost].sum(-1)
            resampled = np.divide(above, played, out=np.full(len(above), np.nan), where=played > 0)
        return rate_interval(counts[won].sum(), counts[lost].sum(), resampled=resampled)

    every, standings, pairs = slice(None), [], []
    for method, i in place.items():
        asked = int(((table.first == i) | (table.second == i)).sum())
        against = rate((every, i), (every, every, i))
        standings.append(Standing(method, asked, against, strengths[i], ends[0][i], ends[1][i]))
    for (first, i), (second, j) in itertools.combinations(place.items(), 2):
        score = table.score[(table.first == i) & (table.second == j)]
        won, tied, lost = (int((score == value).sum()) for value in (1, 0.5, 0))
        own = rate((every, i, slice(j, j + 1)), (every, j, slice(i, i + 1)))
        pairs.append(Pair(first, second, won, tied, lost, own))
    decided = [answer.answer for _, answer, _ in answers if answer.answer != SAME]
    left = decided.count("left") / len(decided) if decided else None
    undecided = len(answers) - len(decided)
    return Aspect(name, len(answers), undecided, left, tuple(standings), tuple(pairs))


def _notes(raters: int, aspects: Sequence[Aspect]) -> Iterator[str]:
    if raters == 1:
        yield "One rater: intervals are over items alone and say nothing of other people."
    elif raters < _FEW_RATERS:
        yield f"{raters} raters: too few for an interval that speaks of people in general."
    for asked, pair in ((aspect.name, pair) for aspect in aspects for pair in aspect.pairs):
        about = f"{asked}: {pair.first} against {pair.second}"
        if pair.rate is None:
            yield f"{about}: no answers."
        elif pair.rate.value in (0.0, 1.0):
            prior = "so that the strengths rest on their prior (one tie between every two methods)"
            yield f"{about}: all answers agree, {prior}; read the rate and its interval."


def to_text(results: Results) -> str:
    """Return the results as Markdown: who counts, then for each question rates and strengths."""
    return filled("study.md", results=results, words=words).rstrip() + "\n"
