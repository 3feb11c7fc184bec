"""`bench score` (a run's stage, or two folders of images) and `bench tools`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.app.options import (
    RESULTS,
    AllowLeak,
    AsJson,
    BaseFolder,
    Batch,
    BudgetName,
    DataFolder,
    Device,
    Every,
    Guidance,
    MethodName,
    Options,
    Rate,
    Results,
    Seed,
    Side,
    Steps,
    SuiteName,
    TaskName,
    TrainItems,
    Variant,
    guarded,
    with_execution,
)
from bench.terminal import aside, say, to_json

if TYPE_CHECKING:
    from bench.comparison import Comparison

JUDGE = "efficientnet-lite0"
JudgeName = Annotated[
    str,
    typer.Option(
        "--judge",
        help="efficientnet-lite0, inception-v3, dinov2-vitb14, emoji-clip, open-clip/MODEL.",
    ),
]
Weights = Annotated[Path | None, typer.Option("--weights", help="The judge's weight file.")]
Clip = Annotated[str | None, typer.Option("--clip", help="A CLIP judge, for CMMD.")]
ClipWeights = Annotated[Path | None, typer.Option("--clip-weights", help="Its weight file.")]
Images = Annotated[Path, typer.Argument(help="A folder of images.")]
_OF_BOTH = {"device", "batch"}
_OF_FOLDERS = {"judge", "weights", "clip", "clip_weights", "sensitivity", "intervals", "as_json"}


def score_or(stage: Callable[..., None]) -> Callable[..., None]:
    """Return `bench score`: two folders are compared, without any it is the stage of a run."""

    @guarded
    @with_execution
    def score(
        context: typer.Context,
        generated: Annotated[Path | None, typer.Argument(help="Generated images (A).")] = None,
        reference: Annotated[Path | None, typer.Argument(help="Reference images (B).")] = None,
        method: MethodName = "bps",
        task: TaskName = "sketch",
        suite: SuiteName = "emoji",
        budget: BudgetName = None,
        seed: Seed = 0,
        results: Results = RESULTS,
        device: Device = "auto",
        base: BaseFolder = None,
        option: Options = None,
        learning_rate: Rate = None,
        batch: Batch = 32,
        checkpoint_every: Every = 100,
        side: Side = None,
        allow_leak: AllowLeak = False,
        data: DataFolder = None,
        judge: JudgeName = JUDGE,
        weights: Weights = None,
        clip: Clip = None,
        clip_weights: ClipWeights = None,
        as_json: AsJson = False,
        variant: Variant = None,
        train_items: TrainItems = None,
        guidance: Guidance = None,
        steps: Steps = None,
        sensitivity: Annotated[
            bool, typer.Option("--sensitivity", help="Again with another resizer, JPEG, half.")
        ] = False,
        intervals: Annotated[bool, typer.Option(help="95% intervals of the metrics.")] = True,
        *,
        execution: dict[str, Any],
    ) -> None:
        """Score the samples of a run, or any two folders of images: bench score A B."""
        from bench.types import BenchError

        if generated is not None and reference is None:
            raise BenchError(
                f"one folder only ({generated}): give two, the generated images and the reference, "
                "or none to score a run's samples."
            )
        _refuse_strays(context, folders=generated is not None)
        if generated is None or reference is None:
            stage(
                method=method,
                task=task,
                suite=suite,
                budget=budget,
                seed=seed,
                results=results,
                device=device,
                base=base,
                option=option,
                learning_rate=learning_rate,
                batch=batch,
                checkpoint_every=checkpoint_every,
                side=side,
                allow_leak=allow_leak,
                data=data,
                variant=variant,
                train_items=train_items,
                guidance=guidance,
                steps=steps,
                **execution,
            )
            return
        found = _compared(
            generated,
            reference,
            judge=judge,
            weights=weights,
            clip=clip,
            clip_weights=clip_weights,
            device=device,
            batch=batch,
            sensitivity=sensitivity,
            intervals=intervals,
        )
        say(to_json(found.as_json()) if as_json else comparison_text(found))

    return score


def _refuse_strays(context: typer.Context, *, folders: bool) -> None:
    """Refuse options that this form of `bench score` would ignore."""
    from bench.types import BenchError

    given = {
        name
        for name in context.params
        if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    } - {"generated", "reference"}
    stray = given - _OF_BOTH - _OF_FOLDERS if folders else given & _OF_FOLDERS
    if stray:
        names = ", ".join(f"--{name.removeprefix('as_').replace('_', '-')}" for name in sorted(stray))
        why = "belongs to a run, not to two folders" if folders else "needs two folders of images"
        raise BenchError(f"{names} {why}. Leave it away, or see `bench score --help`.")


def _compared(
    first: Path,
    second: Path,
    *,
    judge: str,
    weights: Path | None,
    clip: str | None,
    clip_weights: Path | None,
    device: str,
    batch: int,
    sensitivity: bool,
    intervals: bool,
) -> Comparison:
    from bench.comparison import compare
    from bench.console import ConsoleHooks
    from bench.folders import manifest_of

    total = sum(len(manifest_of(folder).files) for folder in (first, second))
    features, reader = _judges(judge, weights, clip, clip_weights, device)
    hooks = ConsoleHooks()
    hooks.stage("judging", total)
    hooks.tick(0, total)
    try:
        return compare(
            first,
            second,
            features=features,
            clip=reader,
            batch=batch,
            sensitivity=sensitivity,
            intervals=intervals,
            tick=hooks.tick,
        )
    finally:
        hooks.close()


def _judges(
    judge: str, weights: Path | None, clip: str | None, clip_weights: Path | None, device: str
) -> tuple[Any, Any]:
    from bench.arguments import parse_device
    from bench.judges import judge_card, load_judge
    from bench.types import BenchError

    if clip is None and clip_weights is not None:
        raise BenchError("--clip-weights needs --clip with the name of the judge.")
    if clip is not None and not judge_card(clip, weights=clip_weights).reads_text:
        raise BenchError(f"--clip {clip} is no CLIP judge. Allowed: emoji-clip, open-clip/MODEL.")
    place = parse_device(device)
    features = load_judge(judge, weights=weights, device=place)
    return features, load_judge(clip, weights=clip_weights, device=place) if clip else None


def comparison_text(found: Comparison) -> str:
    """Return a comparison as plain tables for a terminal."""
    from bench.folders import left_out
    from bench.report.grid import to_plain
    from bench.report.names import amount

    lines = []
    for letter, facts in zip("AB", found.folders, strict=True):
        sizes = ", ".join(facts["sizes"]) if len(facts["sizes"]) < 4 else f"{len(facts['sizes'])} sizes"
        skipped = f"; skipped: {left_out(facts['skipped'])}" if facts["skipped"] else ""
        lines.append(f"{letter}  {facts['folder']}: {facts['n']} images of {sizes}{skipped}")
    lines += [f"judge  {card.name} {card.digest[:12]}, {card.resize}" for card in found.judges.values()]
    lines += [f"warning: {warning}" for warning in found.warnings]
    table = [["", "value", "95% interval", ""], *_metric_lines(found)]
    text = "\n".join(lines) + "\n\n" + to_plain(table)
    if found.metrics["cosine"].value is not None and found.metrics["fd"].low is not None:
        text += "\nfiles of one stem are pairs: intervals leave both out together"
    text += f"\nKID from subsets: standard error {amount(found.kid_error)}\n"
    return text + _sensitivity_text(found) if found.sensitivity else text


def _metric_lines(found: Comparison) -> list[list[str]]:
    from bench.report.names import Column, brackets, decimals, header, number

    lines = []
    for name, metric in found.metrics.items():
        low, high = metric.low, metric.high
        widths = [high - low] if low is not None and high is not None else []
        digits = decimals([metric.value], widths=widths)
        ends = brackets(low, high, digits)
        title = header(Column.of(name, metric))
        lines.append([title, number(metric.value, digits), ends, found.reasons.get(name, "")])
    return lines


def _sensitivity_text(found: Comparison) -> str:
    from bench.comparison import SAYS
    from bench.report.grid import to_plain
    from bench.report.names import Column, named

    changes = list(found.sensitivity)
    lines = [["how far it moves", "as given", *changes]]
    for name, metric in found.metrics.items():
        if metric.value is None:
            continue
        moved = [_moved(metric.value, found.sensitivity[change].get(name)) for change in changes]
        lines.append([named(Column.of(name, metric)), _moved(None, metric.value), *moved])
    keys = "".join(f"{change}: {SAYS[change]}\n" for change in changes)
    return f"\n{to_plain(lines)}\n{keys}"


def _moved(before: float | None, after: float | None) -> str:
    """Return a value, and how far it is from what it was, in percent of that."""
    from bench.report.names import MISSING

    if after is None:
        return MISSING
    if before is None or before == 0:
        return f"{after:.4g}"
    return f"{after:.4g} ({100 * (after - before) / abs(before):+.1f}%)"


@guarded
def tools_command(
    first: Images,
    second: Images,
    out: Annotated[Path | None, typer.Option(help="Folder for tools.md and tools.json.")] = None,
    judge: JudgeName = JUDGE,
    weights: Weights = None,
    clip: Clip = None,
    clip_weights: ClipWeights = None,
    device: Device = "auto",
    batch: Batch = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Times each tool runs.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Measure two folders with this tool, torch-fidelity and clean-fid: values and times."""
    from bench.content import atomic_write, write_json
    from bench.tools import three_tools

    features, reader = _judges(judge, weights, clip, clip_weights, device)
    table = three_tools(
        first,
        second,
        judge=features,
        clip=reader,
        batch=batch,
        rounds=rounds,
        say=aside,
    )
    found: Mapping[str, Any] = table.as_json()
    if out is not None:
        atomic_write(out / "tools.md", table.as_markdown().encode())
        write_json(out / "tools.json", found)
    say(to_json(found) if as_json else table.as_markdown().rstrip())
