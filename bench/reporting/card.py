"""A model card of exported weights, filled from the record of their run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from bench.config import option_text
from bench.record import RunRecord
from bench.reporting.tables import record_text
from bench.reporting.words import command_line, count

LICENCE_FILE = "LICENSE.md"


@dataclass(frozen=True, kw_only=True)
class About:
    """What a card says that no record holds.

    title, source: of the method. base: its name; whole: whether it lies in the folder too. licence:
    sentences. usage: lines of Python. condition: the condition in words.
    """

    title: str
    source: str
    base: str
    whole: bool
    licence: Sequence[str]
    usage: str
    condition: str


def model_card(record: RunRecord, about: About) -> str:
    """Return README.md of a folder with the weights of a run, ending in a newline."""
    from huggingface_hub import ModelCard, ModelCardData

    hub, _, _ = about.base.partition("@")
    data = ModelCardData(
        base_model=hub if "/" in hub else None,  # a folder's name is no model of the hub
        license="other",
        license_name="see-license-file",
        license_link=LICENCE_FILE,
        library_name="diffusers",
        tags=["bps-bench", record.method, record.task],
    )
    card = ModelCard.from_template(
        data,
        template_str=resources.files(__package__).joinpath("templates/card.md").read_text(encoding="utf-8"),
        about=about,
        record=record,
        parameters=count(record.cost.parameters_trainable),
        scores=record_text(record),
        command=command_line(record),
        options=", ".join(f"{k} {option_text(v)}" for k, v in sorted(record.options.items())),
    )
    return f"{card}\n"
