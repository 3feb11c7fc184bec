"""How long work tells of its progress and learns that it should stop."""

from __future__ import annotations


class Hooks:
    """How a run tells of its progress and learns that it should stop; does nothing by itself."""

    def stage(self, name: str, total: int) -> None:
        """A stage of `total` steps begins."""

    def tick(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps of the stage are finished."""

    def stop(self) -> int | None:
        """Return an exit code once somebody asked to stop."""
        return None

    def say(self, text: str) -> None:
        """Something is worth a line."""


class Quiet(Hooks):
    """The hooks of a process that is not the main one: silent, but told to stop as all are."""

    def __init__(self, hooks: Hooks) -> None:
        self.stop = hooks.stop  # type: ignore[method-assign]
