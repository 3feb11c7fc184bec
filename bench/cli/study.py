"""The commands of the user study: make a page, score the answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import AsJson, Shell, guarded
from bench.cli.terminal import aside, say, to_json

study_app = Shell(
    help="A blind user study: an offline page of pairs, and the scores of its answers.",
    no_args_is_help=True,
)


@study_app.command("make")
@guarded
def make_command(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs, two or more.")],
    out: Annotated[Path, typer.Option(help="The page to write, one HTML file.")],
    key: Annotated[
        Path | None, typer.Option(help="What its codes mean; keep it. Else key.json beside it.")
    ] = None,
    pairs: Annotated[
        int | None, typer.Option(min=1, help="Pairs that a person sees; else 40, or all there are.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the pairs, their sides and codes.")] = 0,
    title: Annotated[str, typer.Option(help="Shown to people; name no method.")] = "Which picture is better?",
    ask: Annotated[str, typer.Option(help="fidelity, quality or both.")] = "both",
    checks: Annotated[float, typer.Option(help="Share of attention checks, 0 to 0.5.")] = 0.1,
) -> None:
    """Make a blind A/B page from runs of one suite, task, protocol and seed."""
    from bench.study.page import Design, make_study

    design = Design(pairs=pairs, seed=seed, title=title, ask=ask, checks=checks)
    kept, made = make_study(runs, out=out, key=key, design=design)
    checked = sum(q.check for q in made.questions.values())
    size = out.stat().st_size / 1e6
    say(f"page  {out}  ({size:.1f} MB, study {made.study}: send this file to people)")
    say(f"key   {kept}  (keep it to yourself: it says which method is which)")
    say(
        f"asks  {', '.join(made.aspects)} of {len(made.questions) - checked} pairs of "
        f"{len(made.methods)} methods and {checked} attention checks"
    )
    say(f"then  bench study score FILES --key {kept}")


@study_app.command("score")
@guarded
def score_command(
    files: Annotated[list[Path], typer.Argument(help="Answers that people downloaded.")],
    key: Annotated[Path, typer.Option(help="The key written with the page.")],
    allow_failed: Annotated[
        float, typer.Option(help="Share of failed attention checks up to which answers count.")
    ] = 0.25,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Score answers: preference rates and Bradley-Terry strengths with intervals."""
    from bench.study.results import score_study, to_text

    results = score_study(files, key=key, allowed=allow_failed, seed=seed)
    if results.left_out:
        aside(f"left out for failed attention checks: {len(results.left_out)}")
    say(to_json(results.as_dict()) if as_json else to_text(results).rstrip())
