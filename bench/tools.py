"""Three tools on the same two folders: ours, torch-fidelity and clean-fid, values and times.

All see the same network through the same call, in the same batches, in this process with the same
threads and no workers beside it; each decodes its own images. torch-fidelity runs FID and KID in one
call (one feature pass); clean-fid's features are taken once for both of its numbers, which its own
`compute_fid` and `compute_kid` would take twice: the faster way for it. Ours runs everything that
`bench score A B` tells, intervals and paired metrics included. Before the clock starts, each tool has
run once on a few images.
"""

from __future__ import annotations

import itertools
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.comparison import FLOOR, SEED, compare
from bench.folders import SUFFIXES, manifest_of, pictures_of, readable
from bench.judges import Judge, JudgeCard
from bench.report.grid import Grid, Text, to_markdown
from bench.report.names import MISSING, amount
from bench.types import BenchError

if TYPE_CHECKING:
    import torch

OURS = "bps-bench"
SUBSETS, SUBSET = 100, 1000
_SERIAL = itertools.count()

Tool = Callable[[Path, Path, Judge, int], dict[str, float]]
"""(first, second, judge, batch) -> numbers by name; "fd" and "kid" among them."""


@dataclass(frozen=True, kw_only=True)
class ToolRow:
    """What one tool said and took: medians over the rounds, in seconds of clock and of processor.

    values: by metric, without those the tool could not compute; error: what it said instead. images:
    how many it judged in a round.
    """

    tool: str
    version: str
    images: int
    values: Mapping[str, float]
    error: str
    seconds: float
    processor_seconds: float


@dataclass(frozen=True, kw_only=True)
class ToolTable:
    """The rows, ours first.

    ratio: times of the others that ran, together, over ours (above 1, ours is faster); None where
    ours or all others failed.
    """

    rows: tuple[ToolRow, ...]
    judge: JudgeCard
    clip: JudgeCard | None
    images: tuple[int, int]
    size: tuple[int, int]
    batch: int
    threads: int
    rounds: int
    ratio: float | None
    processor_ratio: float | None

    def as_json(self) -> dict[str, Any]:
        """Return it as a JSON value."""
        return asdict(self)

    def as_markdown(self) -> str:
        """Return it as a Markdown table with what was equal beneath."""
        name = "FID" if self.judge.name == "Inception-v3" else f"FD ({self.judge.name})"
        head = ("tool", "version", "images", name, "KID", "numbers", "seconds", "processor seconds")
        body = tuple(
            (
                *(Text(main=x) for x in (row.tool, row.version, str(row.images))),
                *(Text(main=_digits(row.values.get(key))) for key in ("fd", "kid")),
                Text(main=str(len(row.values))),
                *(Text(main=amount(x)) for x in (row.seconds, row.processor_seconds)),
            )
            for row in self.rows
        )
        failed = "".join(f" {row.tool} failed: {row.error}." for row in self.rows if row.error)
        also = f" and {self.clip.name} for CMMD" if self.clip else ""
        caption = (
            f"{self.images[0]} and {self.images[1]} images of {self.size[0]}x{self.size[1]}, "
            f"{self.judge.name}{also}, batches of {self.batch}, {self.threads} thread(s), "
            f"median of {self.rounds} round(s).{self._ratio_text()}{failed}"
        )
        return to_markdown(Grid(header=head, body=body, caption=caption, left=2))

    def _ratio_text(self) -> str:
        if self.ratio is None:
            return ""
        ran = [row.tool for row in self.rows[1:] if not row.error]
        others = f"{' and '.join(ran)} one after the other take" if len(ran) > 1 else f"{ran[0]} takes"
        return (
            f" {others} {self.ratio:.2f} times as long as all of ours ({self.processor_ratio:.2f} times "
            "in processor time)."
        )


def three_tools(
    first: Path,
    second: Path,
    *,
    judge: Judge,
    clip: Judge | None = None,
    batch: int = 32,
    rounds: int = 1,
    say: Callable[[str], None] | None = None,
) -> ToolTable:
    """Run the three tools on two folders of images of one size, `rounds` times in turn.

    clip: a second network for ours alone (CMMD). say: told what runs. BenchError
    for folders that the other tools cannot read: images of several sizes.
    """
    import torch

    width, height = _one_size(first, second)
    counted = _Counted(judge)
    tools = {OURS: _ours(clip), "torch-fidelity": torch_fidelity, "clean-fid": clean_fid}
    say = say or (lambda text: None)
    say(f"warming up on {FLOOR} images a folder")
    with _few(first, second) as few:
        for tool in tools.values():
            _attempt(tool, *few, counted, batch)
    taken: dict[str, list[_Taken]] = {name: [] for name in tools}
    for turn in range(1, rounds + 1):
        for name, tool in tools.items():
            say(f"{name}, round {turn} of {rounds}")
            counted.images = 0
            taken[name].append(_timed(tool, first, second, counted, batch))
    rows = tuple(_row(name, rounds_of) for name, rounds_of in taken.items())
    return ToolTable(
        rows=rows,
        judge=judge.card,
        clip=clip.card if clip else None,
        images=(len(manifest_of(first).files), len(manifest_of(second).files)),
        size=(width, height),
        batch=batch,
        threads=torch.get_num_threads(),
        rounds=rounds,
        ratio=_ratio(rows, lambda row: row.seconds),
        processor_ratio=_ratio(rows, lambda row: row.processor_seconds),
    )


def _ours(clip: Judge | None) -> Tool:
    def run(first: Path, second: Path, judge: Judge, batch: int) -> dict[str, float]:
        found = compare(first, second, features=judge, clip=clip, batch=batch)
        return {name: m.value for name, m in found.metrics.items() if m.value is not None}

    return run


def torch_fidelity(first: Path, second: Path, judge: Judge, batch: int) -> dict[str, float]:
    """Return FD and KID as torch-fidelity computes them, with the judge as its feature extractor."""
    from torch_fidelity import calculate_metrics
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

    name = f"bench-judge-{next(_SERIAL)}"  # a name may be registered once only
    register_feature_extractor(name, _extractor(judge))
    try:
        found = calculate_metrics(
            input1=str(first.resolve()),
            input2=str(second.resolve()),
            fid=True,
            kid=True,
            feature_extractor=name,
            batch_size=batch,
            cuda=False,
            cache=False,
            save_cpu_ram=True,
            samples_find_ext=",".join(s.removeprefix(".") for s in SUFFIXES),
            verbose=False,
            kid_subsets=SUBSETS,
            kid_subset_size=min(SUBSET, *(len(manifest_of(x).files) for x in (first, second))),
        )
    finally:
        del FEATURE_EXTRACTORS_REGISTRY[name]
    return {
        "fd": float(found["frechet_inception_distance"]),
        "kid": float(found["kernel_inception_distance_mean"]),
    }


def _extractor(judge: Judge) -> Any:
    """Return a class in torch-fidelity's form that asks the judge: uint8 [B,3,H,W] -> [B,D]."""
    import torch
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    class Extractor(FeatureExtractorBase):
        """The judge under the name that was registered."""

        def __init__(self, name: str, features_list: list[str], **_: Any) -> None:
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("features",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "features"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (torch.from_numpy(_ask(judge, images)),)

    return Extractor


def clean_fid(first: Path, second: Path, judge: Judge, batch: int) -> dict[str, float]:
    """Return FD and KID as clean-fid computes them, with the judge as its custom extractor.

    Its KID draws from numpy's global generator, which is seeded for the call and put back.
    """
    import torch
    from cleanfid import fid

    def model(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(_ask(judge, images.round().to(torch.uint8)))

    features = [
        fid.get_folder_features(
            str(folder.resolve()),
            model,
            num_workers=0,
            batch_size=batch,
            mode="clean",
            device=torch.device("cpu"),
            custom_fn_resize=lambda image: image,
            verbose=False,
        )
        for folder in (first, second)
    ]
    state = np.random.get_state()
    np.random.seed(SEED)
    try:
        kid = fid.kernel_distance(*features, num_subsets=SUBSETS, max_subset_size=SUBSET)
    finally:
        np.random.set_state(state)
    return {"fd": float(fid.fid_from_feats(*features)), "kid": float(kid)}


def _ask(judge: Judge, images: torch.Tensor) -> np.ndarray:
    """Return a judge's features of one batch, uint8 [B,3,H,W] -> [B,D] float32."""
    return judge.features(images.permute(0, 2, 3, 1).numpy(), batch_size=len(images))


class _Counted(Judge):
    """A judge that counts the images it was shown."""

    def __init__(self, judge: Judge) -> None:
        self.card, self.side, self.images, self._judge = judge.card, judge.side, 0, judge

    def features(self, images: np.ndarray, **how: Any) -> np.ndarray:
        self.images += len(images)
        return self._judge.features(images, **how)


@dataclass(frozen=True, kw_only=True)
class _Taken:
    values: dict[str, float]
    error: str
    images: int
    seconds: float
    processor: float


def _attempt(tool: Tool, first: Path, second: Path, judge: Judge, batch: int) -> tuple[dict[str, float], str]:
    """Run a tool; what goes wrong inside another's is its row's error, not ours."""
    try:
        return tool(first, second, judge, batch), ""
    except BenchError:
        raise
    except Exception as error:
        return {}, readable(f"{type(error).__name__}: {error}")


def _timed(tool: Tool, first: Path, second: Path, judge: _Counted, batch: int) -> _Taken:
    clock, processor = time.perf_counter(), time.process_time()
    values, error = _attempt(tool, first, second, judge, batch)
    return _Taken(
        values=values,
        error=error,
        images=judge.images,
        seconds=time.perf_counter() - clock,
        processor=time.process_time() - processor,
    )


def _row(name: str, rounds: list[_Taken]) -> ToolRow:
    return ToolRow(
        tool=name,
        version=metadata.version(name),
        images=rounds[0].images,
        values=rounds[0].values,
        error=next((r.error for r in rounds if r.error), ""),
        seconds=statistics.median(r.seconds for r in rounds),
        processor_seconds=statistics.median(r.processor for r in rounds),
    )


def _ratio(rows: Sequence[ToolRow], time_of: Callable[[ToolRow], float]) -> float | None:
    """Return the times of the other tools that ran over that of ours, the first row."""
    ours, *others = rows
    ran = [row for row in others if not row.error]
    return sum(map(time_of, ran)) / time_of(ours) if ran and not ours.error else None


@contextmanager
def _few(first: Path, second: Path) -> Iterator[tuple[Path, Path]]:
    """Give two folders of the first few images of each, to warm up on."""
    with tempfile.TemporaryDirectory() as root:
        folders = Path(root) / "a", Path(root) / "b"
        for source, folder in zip((first, second), folders, strict=True):
            folder.mkdir()
            for path in manifest_of(source).files[:FLOOR]:
                shutil.copy(path, folder)
        yield folders


def _one_size(first: Path, second: Path) -> tuple[int, int]:
    manifests = manifest_of(first), manifest_of(second)
    sizes = {p.pixels.shape[1::-1] for m in manifests for _, p in pictures_of(m, m.files)}
    if len(sizes) > 1:
        raise BenchError(
            f"{first} and {second} hold images of {len(sizes)} sizes; torch-fidelity and clean-fid "
            "take images of one size alone. Resize them, or use `bench score`, which takes any."
        )
    width, height = sizes.pop()
    return width, height


def _digits(value: float | None) -> str:
    return MISSING if value is None else f"{value:.7g}"
