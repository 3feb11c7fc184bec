"""`bench compare A B`, two folders by metrics, and `bench study`, methods by people."""

from __future__ import annotations

import shlex
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.options import AsJson, Asked, Shell, configured, taking
from bench.cli.terminal import ConsoleHooks, aside, say, to_json
from bench.config import RESULTS, Design, argv, option

if TYPE_CHECKING:
    from bench.scoring import Comparison


@dataclass(frozen=True, kw_only=True)
class How:
    """How to compare: the command's options beside those of RunConfig."""

    judge: str = option("efficientnet-lite0", "The network that reads both, see `bench list`.")
    judge_weights: Path | None = option(None, "The judge's weight file.")
    clip: str | None = option(None, "A CLIP judge, for CMMD.")
    clip_weights: Path | None = option(None, "Its weight file.")
    sensitivity: bool = option(False, "Again with another resizer, JPEG, half.", flags=["--sensitivity"])
    intervals: bool = option(True, "95% intervals of the metrics.")
    also: tuple[str, ...] = option((), "Other tools on the same judge: torch-fidelity, clean-fid.")
    captions: Path | None = option(None, "JSON, file name: caption, of A: its CLIP score, with --clip.")
    name: str | None = option(None, "Keep A's scores under this name: a row of a report, see --results.")
    results: Path | None = option(None, "With --name: the results folder, else results/runs.")
    save_stats: Path | None = option(None, "Write mu and sigma of B's features into this .npz.")


@configured("device", "sample_batch")
@taking(How, "how")
def compare(
    generated: Annotated[Path, typer.Argument(help="Generated images (A).")],
    reference: Annotated[Path, typer.Argument(help="Reference images (B).")],
    *,
    asked: Asked,
    how: How,
    as_json: AsJson = False,
) -> None:
    """Compare two sets of images: the metrics of sets, with intervals, and of pairs of one stem.

    Each is a folder, a .npz of images (arr_0), or a .npz of statistics (mu, sigma), for FD alone.
    """
    from bench.content import Text, check_word, read_json
    from bench.data.folder import STATISTICS, manifest_of
    from bench.metrics import check_tools
    from bench.packed import add_comparison
    from bench.scoring import caption_score, save_statistics
    from bench.scoring import compare as compare_folders
    from bench.types import BenchError

    check_tools(how.also)
    if how.results is not None and how.name is None:
        raise BenchError("--results needs --name, what the row is called.")
    check_word(how.name or "row")
    if how.captions is not None and how.clip is None:
        raise BenchError("--captions needs a CLIP judge: --clip emoji-clip, or open-clip/MODEL/TAG.")
    captions = read_json(how.captions, of=dict[Text, Text]) if how.captions else None
    folders = [path for path in (generated, reference) if path.suffix.lower() != STATISTICS]
    total = sum(len(manifest_of(folder).files) for folder in folders)
    judges, more = _judges(how, device=asked.config.device), dict[str, Any](batch=asked.config.sample_batch)
    score = {}
    if captions is not None:
        score["clip"] = caption_score(generated, captions, clip=judges["clip"], **more)
    what: dict[str, Any] = {key: getattr(how, key) for key in ("sensitivity", "intervals", "also")}
    with closing(ConsoleHooks()) as hooks:
        hooks.stage("judging", total)
        hooks.tick(0, total)
        comparison = compare_folders(generated, reference, judges=judges, tick=hooks.tick, **more, **what)
    comparison = replace(comparison, metrics={**comparison.metrics, **score})
    say(to_json(comparison.as_json()) if as_json else comparison_text(comparison))
    if how.name is not None:
        moving = ("judge", "judge_weights", "clip", "clip_weights", "captions", "name")
        told = argv(How(**{key: getattr(how, key) for key in moving}))
        command = shlex.join(["bench", "compare", str(generated), str(reference), *told])
        aside(f"row: {add_comparison(comparison, how.results or RESULTS, name=how.name, command=command)}")
    if how.save_stats is not None:
        save_statistics(reference, how.save_stats, judge=judges["features"], **more)


def _judges(how: How, *, device: str) -> dict[str, Any]:
    from bench.judges import judge_card, load_judge
    from bench.training.engine import find_device
    from bench.types import BenchError

    if how.clip is None and how.clip_weights is not None:
        raise BenchError("--clip-weights needs --clip with the name of the judge.")
    if how.clip is not None and not judge_card(how.clip, weights=how.clip_weights).reads_text:
        raise BenchError(f"--clip {how.clip} is no CLIP judge. Allowed: emoji-clip, open-clip/MODEL.")
    place = find_device(device)
    judges = {"features": load_judge(how.judge, weights=how.judge_weights, device=place)}
    if how.clip is not None:
        judges["clip"] = load_judge(how.clip, weights=how.clip_weights, device=place)
    return judges


def comparison_text(comparison: Comparison) -> str:
    """Return a comparison as plain tables for a terminal; how far numbers move in percent of them."""
    from bench.reporting.render import MISSING, filled, to_plain
    from bench.reporting.words import Column, brackets, decimals, number
    from bench.scoring import SAYS

    lines = [["", "value", "95% interval", ""]]
    moved = [["how far it moves", "as given", *comparison.sensitivity]]
    for name, m in comparison.metrics.items():
        column, value, digits = Column.of(name, m), m.value, decimals([m])
        ends = brackets(m.low, m.high, digits)
        lines.append([column.header, number(value, digits), ends, comparison.reasons.get(name, "")])
        row = []
        for after in (values[name] for values in comparison.sensitivity.values() if value is not None):
            share = f" ({100 * (after - value) / abs(value):+.1f}%)" if after is not None and value else ""
            row.append(MISSING if after is None else f"{after:.4g}{share}")
        moved += [] if value is None else [[column.named, f"{value:.4g}", *row]]
    told = {"table": to_plain(lines), "moved": to_plain(moved), "says": SAYS}
    return filled("compare.txt", comparison=comparison, **told).rstrip()


study_app = Shell(
    help="A blind user study: an offline page of pairs, and the scores of its answers.", no_args_is_help=True
)


@study_app.command("make")
@taking(Design, "design")
def make_command(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs, two or more.")],
    out: Annotated[Path, typer.Option(help="The page to write, one HTML file.")],
    key: Annotated[
        Path | None, typer.Option(help="What its codes mean; keep it. Else key.json beside it.")
    ] = None,
    *,
    design: Design,
) -> None:
    """Make a blind A/B page from runs of one suite, task, protocol and seed."""
    from bench.study.page import make_study

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
