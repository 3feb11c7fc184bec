"""Layer-weight schedules: how strongly each place of the encoder and the middle is steered.

A schedule is 13 numbers in encoder order. Entries 0 1 | 3 4 | 6 7 | 9 10 weigh the two residuals of
levels 0 to 3 (slots 1 2 | 4 5 | 7 8 | 10 11), entry 12 the middle (slot 12). Entries 2, 5, 8 and 11
stand for places that are never steered and weigh nothing. Decoder residuals always weigh 1.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

from bench.types import unknown
from bps.sites import MIDDLE_SLOT

ENTRIES = 13
_HEAD_HEAVY = (16.0, 16.0, 1.0, 8.0, 8.0, 1.0, 4.0, 4.0, 1.0, 2.0, 2.0, 1.0, 16.0)
SCHEDULES: dict[str, tuple[float, ...]] = {
    "head_heavy": _HEAD_HEAVY,
    "head_heavy_xl": tuple(weight if weight == 1 else 2 * weight for weight in _HEAD_HEAVY),
    "uniform": (1.0,) * ENTRIES,
    "foot_heavy": (2.0, 2.0, 1.0, 4.0, 4.0, 1.0, 8.0, 8.0, 1.0, 16.0, 16.0, 1.0, 16.0),
    "learned": _HEAD_HEAVY,
    "learned_log": _HEAD_HEAVY,
}
"""head_heavy: the paper's (arXiv 2406.03683; sketch and drawing tasks of the release).
head_heavy_xl: twice that, 32-16-8-4 and 32 (class BPS_XL of the release, which no configuration of it uses).
uniform: all 1 (layout task of the release).
foot_heavy: the mirror image, with the encoder's level weights in reverse order (2, 4, 8, 16 from
the shallowest level to the deepest) and the middle left at 16: the same numbers in another order.
learned: starts as head_heavy, then trained along, as a flag of the release does.
learned_log: the same, but what is trained is the logarithm of weight / starting weight: a step moves a
weight of 16 by as many per cent as one of 2."""

RELEASED = "released"


def released(task: str) -> str:
    """Return the schedule that the release's configuration of a task has, by the task's name.

    Its layout has all weights 1, its sketch and artistic drawing 16-8-4-2 and 16; of tasks without a
    configuration of their own we take the latter.
    """
    return "uniform" if task == "layout" else "head_heavy"


def layer_weights(schedule: str | Sequence[float]) -> tuple[float, ...]:
    """Return the 13 starting weights of a schedule, a name or 13 finite numbers; ValueError for others."""
    if isinstance(schedule, str):
        if schedule not in SCHEDULES:
            raise unknown("schedule", schedule, SCHEDULES)
        return SCHEDULES[schedule]
    weights: tuple[float, ...] = ()
    with contextlib.suppress(TypeError, ValueError):
        weights = tuple(map(float, schedule))
    if len(weights) != ENTRIES or not all(map(math.isfinite, weights)):
        allowed = f"{ENTRIES} finite numbers, or one of {', '.join(SCHEDULES)}"
        raise ValueError(f"schedule is {schedule!r}; allowed: {allowed}.")
    return weights


def slot_weight(schedule: str | Sequence[float], *, slot: int) -> float:
    """Return the starting weight of an encoder or middle slot (1..12) under a schedule."""
    assert 1 <= slot <= MIDDLE_SLOT, slot
    return layer_weights(schedule)[ENTRIES - 1 if slot == MIDDLE_SLOT else slot - 1]


def is_learned(schedule: str | Sequence[float]) -> bool:
    """Tell whether the weights are trained along."""
    return schedule in ("learned", "learned_log")
