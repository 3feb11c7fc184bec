"""`bench compare A B`: any two folders of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.options import AsJson, Asked, configured, guarded, split
from bench.terminal import say, to_json

if TYPE_CHECKING:
    from bench.scoring import Comparison


@guarded
@configured("device", "sample_batch")
def compare(
    generated: Annotated[Path, typer.Argument(help="Generated images (A).")],
    reference: Annotated[Path, typer.Argument(help="Reference images (B).")],
    *,
    asked: Asked,
    judge: Annotated[
        str,
        typer.Option(help="efficientnet-lite0, inception-v3, dinov2-vitb14, emoji-clip, open-clip/MODEL."),
    ] = "efficientnet-lite0",
    judge_weights: Annotated[Path | None, typer.Option(help="The judge's weight file.")] = None,
    clip: Annotated[str | None, typer.Option(help="A CLIP judge, for CMMD.")] = None,
    clip_weights: Annotated[Path | None, typer.Option(help="Its weight file.")] = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Again with another resizer, JPEG, half.")
    ] = False,
    intervals: Annotated[bool, typer.Option(help="95% intervals of the metrics.")] = True,
    also: Annotated[
        list[str] | None, typer.Option(help="Other tools on the same judge: torch-fidelity, clean-fid.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two folders of images: the metrics of sets, with intervals, and of pairs of one stem."""
    from bench.cli.progress import ConsoleHooks
    from bench.data.folder import manifest_of
    from bench.scoring import compare as compare_folders
    from bench.tools import check_one_size, find_tools, tool_values

    tools = find_tools(split(also or ()))
    if tools:
        check_one_size(generated, reference)
    total = sum(len(manifest_of(folder).files) for folder in (generated, reference))
    features, reader = _judges(judge, judge_weights, clip, clip_weights, device=asked.config.device)
    hooks, batch = ConsoleHooks(), asked.config.sample_batch
    hooks.stage("judging", total)
    hooks.tick(0, total)
    try:
        found = compare_folders(
            generated,
            reference,
            features=features,
            clip=reader,
            batch=batch,
            sensitivity=sensitivity,
            intervals=intervals,
            tick=hooks.tick,
        )
    finally:
        hooks.close()
    others = tool_values(tools, generated, reference, judge=features, batch=batch)
    if as_json:
        say(to_json(found.as_json() | ({"also": others} if others else {})))
    else:
        say(comparison_text(found) + _others_text(others))


def _judges(
    judge: str, weights: Path | None, clip: str | None, clip_weights: Path | None, *, device: str
) -> tuple[Any, Any]:
    from bench.judges import judge_card, load_judge
    from bench.training.processes import find_device
    from bench.types import BenchError

    if clip is None and clip_weights is not None:
        raise BenchError("--clip-weights needs --clip with the name of the judge.")
    if clip is not None and not judge_card(clip, weights=clip_weights).reads_text:
        raise BenchError(f"--clip {clip} is no CLIP judge. Allowed: emoji-clip, open-clip/MODEL.")
    place = find_device(device)
    features = load_judge(judge, weights=weights, device=place)
    return features, load_judge(clip, weights=clip_weights, device=place) if clip else None


def _others_text(others: dict[str, Any]) -> str:
    """Return what other tools say of the same folders, a line each."""
    lines = []
    for tool, values in others.items():
        said = values if isinstance(values, str) else ", ".join(f"{k} {v:.6g}" for k, v in values.items())
        lines.append(f"\n{tool}: {said}")
    return "".join(lines)


def comparison_text(found: Comparison) -> str:
    """Return a comparison as plain tables for a terminal."""
    from bench.data.folder import left_out
    from bench.reporting.grid import to_plain

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
    return f"{text}\n{_sensitivity_text(found)}" if found.sensitivity else text


def _metric_lines(found: Comparison) -> list[list[str]]:
    from bench.reporting.names import Column, brackets, decimals, header, number

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
    from bench.reporting.grid import to_plain
    from bench.reporting.names import Column, named
    from bench.scoring import SAYS

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
    from bench.reporting.names import MISSING

    if after is None:
        return MISSING
    if before is None or before == 0:
        return f"{after:.4g}"
    return f"{after:.4g} ({100 * (after - before) / abs(before):+.1f}%)"
