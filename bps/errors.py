"""The error for a name that is not allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(kind: str, name: object, *, allowed: Iterable[str]) -> ValueError:
    """Build the error for an unknown name: what came, the nearest allowed one, all of them."""
    names = tuple(allowed)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return ValueError(f"unknown {kind} {name!r}.{hint} Allowed: {', '.join(names)}.")
