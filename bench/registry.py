"""Methods, tasks, judges, metrics and suites by name: built-in rows, entry points and "module:Name".

A row says where a thing lies, so that naming it imports nothing. A package outside adds rows by entry
points of the group bps_bench.methods, .tasks, .metrics, .judges or .suites; "module:Name" names a thing
without any packaging, from the working folder too.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.types import BenchError, unknown

if TYPE_CHECKING:
    from bench.record import RunRecord

FLOOR = "text-only"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One name. target: "module:Name"; title: what tables print, "" where only the thing itself knows.

    variant_of, options: where the name is a method's with options set; options of a metric: what it is made
    with. package: who brings it, "" for this project.
    """

    target: str
    title: str = ""
    variant_of: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    package: str = ""


_METHODS = {
    "bps": Row(target="bps.method:BPS", title="BPS"),
    "controlnet": Row(target="baselines.controlnet:ControlNet", title="ControlNet"),
    "t2i-adapter": Row(target="baselines.t2i_adapter:T2IAdapter", title="T2I-Adapter"),
    "sd-finetune": Row(target="baselines.finetuned_sd:FinetunedSD", title="fine-tuned SD"),
    "style-only": Row(target="baselines.style_only:StyleOnly", title="style-only SD"),
    "controlnet-xs": Row(target="baselines.controlnet_xs:ControlNetXS", title="ControlNet-XS"),
    "lora-concat": Row(target="baselines.lora_concat:LoraConcat", title="LoRA + concat"),
    FLOOR: Row(target="baselines.text_only:TextOnly", title="text-only"),
}
_MATCHED = {"schedule": "uniform", "emit_rate": "head_heavy"}
_VARIANTS = {
    name: Row(target=_METHODS[of].target, title=f"{_METHODS[of].title}, {what}", variant_of=of, options=own)
    for name, of, what, own in (
        ("bps-uniform", "bps", "uniform weights", {"schedule": "uniform"}),
        ("bps-uniform-matched", "bps", "uniform weights at matched rates", _MATCHED),
        ("bps-foot-heavy", "bps", "foot-heavy", {"schedule": "foot_heavy"}),
        ("bps-learned", "bps", "learned weights", {"schedule": "learned"}),
        ("bps-learned-log", "bps", "learned weights as logarithms", {"schedule": "learned_log"}),
        ("bps-free", "bps", "free prior", {"prior": "free"}),
        ("bps-unlocked", "bps", "decoder trained along", {"prior": "unlocked"}),
        ("bps-no-prior", "bps", "no prior", {"prior": "none"}),
        ("bps-no-prior-frozen", "bps", "no prior, frozen", {"prior": "none-frozen"}),
        ("bps-encoder", "bps", "encoder alone", {"sites": ["encoder"]}),
        ("bps-middle", "bps", "middle alone", {"sites": ["middle"]}),
        ("bps-decoder", "bps", "decoder alone", {"sites": ["decoder"]}),
        ("bps-output", "bps", "output alone", {"sites": ["output"]}),
        ("bps-timeless", "bps", "blind to time", {"time_aware": False}),
        ("t2i-adapter-uniform", "t2i-adapter", "uniform timesteps", {"timesteps": "uniform"}),
    )
}
_BUILT_IN: Mapping[str, Mapping[str, Row]] = {
    "method": {**_METHODS, **_VARIANTS},
    "task": {
        "sketch": Row(target="bench.tasks.sketch:Sketch"),
        "segmentation": Row(target="bench.tasks.segmentation:Segmentation"),
        "layout": Row(target="bench.tasks.layout:Layout"),
        "drawing": Row(target="bench.tasks.drawing:Drawing"),
        "image": Row(target="bench.tasks.image:GivenImage"),
        "image-grey": Row(target="bench.tasks.image:GreyImage"),
        "image-rgba": Row(target="bench.tasks.image:TransparentImage"),
    },
    "suite": {n: Row(target=f"bench.suites:{n.upper()}") for n in ("emoji", "coco17", "folder", "micro")},
    "judge": {
        name: Row(target=f"bench.judges.{target}", title=title)
        for name, target, title in (
            ("efficientnet-lite0", "vision:EfficientNet", "EfficientNet-Lite0, 1,280 features; ImageNet"),
            ("emoji-clip", "clip:EmojiClip", "CLIP for emoji; shipped"),
            ("inception-v3", "vision:Inception", "Inception-v3, 2,048 features of FID; a weight file"),
            ("inception-v3/clean", "vision:CleanInception", "the same, resized as clean-fid does"),
            ("dinov2-vitb14", "vision:DINOv2", "DINOv2 ViT-B/14, 768 features; a weight file"),
            ("open-clip/MODEL/TAG", "clip:OpenClip", "any model of open_clip; its tag's weight file"),
        )
    },
    "metric": {
        name: Row(target=f"bench.judges.detect:{kind}", title=title, options={"name": name})
        for name, kind, title in (
            ("canny_f1", "Redetected", "Canny's edges in sample and target: F1"),
            ("hed_f1", "Edges", "HED's edges: F1; a weight file"),
            ("hed_ssim", "Edges", "HED's edges: MS-SSIM; a weight file"),
            ("pidinet_f1", "Edges", "PiDiNet's edges: F1; a weight file"),
            ("pidinet_ssim", "Edges", "PiDiNet's edges: MS-SSIM; a weight file"),
            ("depth_rmse", "DepthRMSE", "depth in sample and target; a folder of transformers"),
            ("miou_annotated", "MiouAnnotated", "a segmenter's classes to those annotated; the same"),
            ("miou_seen", "MiouSeen", "a segmenter's classes in sample and target; the same"),
            ("dino", "Dino", "cosine of DINOv2's features to the target's; a weight file"),
            ("lpips", "Lpips", "LPIPS of VGG-16 to the target; two weight files"),
        )
    },
}
_PAPER = ("bps", "controlnet", "t2i-adapter", "sd-finetune", FLOOR)


@cache
def rows(kind: str) -> Mapping[str, Row]:
    """Return every row of a kind ("method", "task", "suite", "judge", "metric"), by name.

    BenchError where an installed package takes a name that is taken: it would change what a record says.
    """
    table = dict(_BUILT_IN[kind])
    for point in metadata.entry_points(group=f"bps_bench.{kind}s"):
        package = point.dist.name if point.dist is not None else point.value
        if point.name in table:
            taker = table[point.name].package or "bps-bench"
            raise BenchError(
                f"package {package} names a {kind} '{point.name}', which {taker} has. Rename it."
            )
        table[point.name] = Row(target=point.value, package=package)
    return table


def groups(kind: str) -> dict[str, tuple[str, ...]]:
    """Return what stands for several names: all methods or tasks; paper and variants for methods."""
    plain = tuple(name for name, row in rows(kind).items() if not row.variant_of)
    if kind == "task":
        return {"all": tuple(n for n in plain if not n.startswith("image"))}
    variants = tuple(n for n in rows(kind) if n not in plain)
    return {"paper": _PAPER, "all": plain, "variants": variants} if kind == "method" else {}


def names(kind: str, asked: Sequence[str]) -> tuple[str, ...]:
    """Return the names asked for, groups opened, each once and in order; BenchError for an unknown one."""
    opened = groups(kind)
    for name in asked:
        if name not in opened:
            row(kind, name)
    return tuple(dict.fromkeys(each for name in asked for each in opened.get(name, (name,))))


def row(kind: str, name: str) -> Row:
    """Return the row of a name or of "module:Name"; BenchError with a "did you mean" otherwise."""
    if ":" in name:
        return Row(target=name)
    if name not in rows(kind):
        raise unknown(kind, name, [*rows(kind), *groups(kind)])
    return rows(kind)[name]


def recorded(kind: str, record: RunRecord) -> Any:
    """Return the method, task or suite of a record, found as the run's configuration named it."""
    return load(kind, str(record.config.get(kind, getattr(record, kind))))


def load(kind: str, name: str) -> Any:
    """Import what a name stands for, a class made, a value as it is; BenchError where that cannot be."""
    found = row(kind, name)
    target, made_with = found.target, found.options if kind == "metric" else {}
    module, _, attribute = target.partition(":")
    here = str(Path.cwd())
    if ":" in name and here not in sys.path:
        sys.path.append(here)  # last: nothing there hides a module of ours
    try:
        thing = getattr(import_module(module), attribute)
        return thing(**made_with) if isinstance(thing, type) else thing
    except (ImportError, AttributeError, TypeError) as error:
        raise BenchError(
            f"{kind} '{name}': {target} cannot be loaded ({error}). Write module:Name of what can be made."
        ) from error
