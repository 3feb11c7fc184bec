"""The command line of BPS-Bench. What is heavy is imported inside commands, so that help is instant."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any

import typer

from bench.cli import compare, data, plan, report, run
from bench.cli.options import Shell, guarded
from bench.cli.terminal import say, substitute_what_it_lacks

app = Shell(
    help="Compare ways of adding an image condition to a text-to-image diffusion model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        say(f"bps-bench {version('bps-bench')}")
        raise typer.Exit


@app.callback()
@guarded
def begin(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print it."),
) -> None:
    """Compare ways of adding an image condition to a text-to-image diffusion model."""
    from bench import child

    gc.set_threshold(50_000, 20, 20)  # collecting as often as by default is a quarter of torch's import
    child.end_with_parent()
    child.check_program(child.PROGRAM)
    substitute_what_it_lacks()


_RUN, _LOOK, _EXCHANGE = "Run", "Look", "Exchange"
_COMMANDS: Mapping[str, Mapping[str, Any]] = {
    _RUN: {name: getattr(run, name) for name in ("run", "ablate", "tune", "train", "sample", "score")},
    _LOOK: {"report": report.report, "show": report.show, "list": report.list_names},
    "Compare": {"compare": compare.compare},
    "Before you spend": {"plan": plan.plan, "cost": plan.cost, "check": plan.check, "audit": data.audit},
    _EXCHANGE: {"export": data.export},
}
for _panel, _commands in _COMMANDS.items():
    for _name, _command in _commands.items():
        app.command(_name, rich_help_panel=_panel)(_command)
app.add_typer(compare.study_app, name="study", rich_help_panel=_LOOK)
for _name, _group in (("data", data.data_app), ("base", data.base_app), ("judges", data.judges_app)):
    app.add_typer(_group, name=_name, rich_help_panel=_EXCHANGE)
app.add_typer(report.results_app, name="results", rich_help_panel=_EXCHANGE)
