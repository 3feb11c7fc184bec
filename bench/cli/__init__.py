"""The command line of BPS-Bench. What is heavy is imported inside commands, so that help is instant."""

from __future__ import annotations

import typer

from bench import child
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
    child.end_with_parent()
    child.check_program(child.PROGRAM)
    substitute_what_it_lacks()


_RUN, _LOOK, _COMPARE = "Run", "Look", "Compare"
_BEFORE, _EXCHANGE = "Before you spend", "Exchange"
_COMMANDS = (
    (_RUN, "run", run.run),
    (_RUN, "ablate", run.ablate),
    (_RUN, "tune", run.tune),
    (_RUN, "train", run.train),
    (_RUN, "sample", run.sample),
    (_RUN, "score", run.score),
    (_LOOK, "report", report.report),
    (_LOOK, "show", report.show),
    (_LOOK, "list", report.list_names),
    (_COMPARE, "compare", compare.compare),
    (_BEFORE, "plan", plan.plan),
    (_BEFORE, "cost", plan.cost),
    (_BEFORE, "check", plan.check),
    (_BEFORE, "audit", data.audit),
    (_EXCHANGE, "export", data.export),
)
for _panel, _name, _command in _COMMANDS:
    app.command(_name, rich_help_panel=_panel)(_command)
app.add_typer(compare.study_app, name="study", rich_help_panel=_LOOK)
app.add_typer(data.data_app, name="data", rich_help_panel=_EXCHANGE)
app.add_typer(data.base_app, name="base", rich_help_panel=_EXCHANGE)
app.add_typer(data.judges_app, name="judges", rich_help_panel=_EXCHANGE)
app.add_typer(report.results_app, name="results", rich_help_panel=_EXCHANGE)
