"""Values and protocols that every stage shares.

Shape legend, used in every docstring:
    N items, B batch, K guidance branches (1 in training; 2 in sampling: empty prompt, prompt),
    C condition channels, H W image pixels, h w latent cells (H/f, W/f for downscale factor f),
    L prompt tokens, D feature or embedding width.
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch


class BenchError(ValueError):
    """An error for the user: says what came, what is allowed and what to do; exit code 2."""


_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
_NO_MEMORY = re.compile("out of memory|not enough memory|can't allocate memory|Cannot allocate memory")


def lacks_memory(error: BaseException) -> bool:
    """Return whether an error says that memory could not be had: torch has several kinds of it."""
    of_torch = isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None
    return of_torch or isinstance(error, MemoryError)


def raise_of_machine(error: BaseException) -> None:
    """Raise the error again where it tells of the machine (no memory, no space), not of what was read."""
    if lacks_memory(error) or (isinstance(error, OSError) and error.errno in _NO_SPACE):
        raise error


def unknown(kind: str, name: str, allowed: Iterable[str]) -> BenchError:
    """Build the error for a name that is not in a table, with a "did you mean" where one is near."""
    names = sorted(allowed)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return BenchError(f"unknown {kind} '{name}'.{hint} Allowed: {', '.join(names)}.")


def how_many(number: int, noun: str) -> str:
    """Return a number with its noun: "1 item", "2 items"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def some(names: Iterable[object], *, most: int = 5, mark: str = ", ") -> str:
    """Return the first few names, and how many more there are."""
    listed = [str(name) for name in names]
    return mark.join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


class Refused(BenchError):
    """A method said that it cannot do a task."""


class Stopped(Exception):
    """Somebody asked the process to stop, with an exit code; the work so far is on disk."""

    def __init__(self, code: int) -> None:
        super().__init__(f"stopped with exit code {code}")
        self.code = code


class Hooks:
    """How long work tells of its progress and learns that it should stop; does nothing by itself."""

    def stage(self, name: str, total: int) -> None:
        """A stage of `total` steps begins."""

    def tick(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps of the stage are finished."""

    def stop(self) -> int | None:
        """Return an exit code once somebody asked to stop."""
        return None

    def say(self, text: str) -> None:
        """Something is worth a line."""

    def check_stop(self) -> None:
        """Raise Stopped once somebody asked to stop."""
        code = self.stop()
        if code is not None:
            raise Stopped(code)


@dataclass(frozen=True, kw_only=True)
class Example:
    """One item of a data set.

    image: [H,W,3] uint8 RGB. layers: what the data set knows beside it, by name: "sketch" [H,W] uint8 (255 =
    line, 0 = paper), "classes" [H,W] uint8 (index into the palette), "boxes" [M,5] integers (class, x0, y0,
    x1, y1; the last two exclusive; uint8, or int32 for images over 255 px), "colours" [H,W,3] uint8 (coarse).
    palette: class colours, [K,3] uint8 RGB, class 0 being the background; None without classes. photo: from
    whose pixels no rule for flat drawings reads. redraw: what drew the sketch, [H,W,3] uint8 -> [H,W] uint8;
    None for a hand's lines. class_names: of the palette's, if known.
    """

    id: str
    caption: str
    image: np.ndarray
    layers: Mapping[str, np.ndarray] = field(default_factory=dict)
    palette: np.ndarray | None = None
    photo: bool = False
    redraw: Callable[[np.ndarray], np.ndarray] | None = None
    class_names: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W, 3) of the image, which need not have been read."""
        return self.image.shape


class Dataset(Protocol):
    """Items by id, with a digest of everything in it."""

    name: str
    digest: str

    @property
    def ids(self) -> tuple[str, ...]:
        """All item ids in a fixed order."""

    def __getitem__(self, item_id: str) -> Example:
        """Return one item; KeyError for an unknown id."""


@dataclass(frozen=True, kw_only=True)
class MetricSpec:
    """What a metric is called, in which unit and direction it counts, and which judge it needs.

    name: in records; title: in tables, "" where the name will do. scale: the unit, beside the title where
    scale_shown. better: "higher", "lower" or "none". judge: "features" or "clip", whose features it reads,
    else what tables call a network of its own; "none" where pixels are enough. share: of items, its interval
    is at least Wilson's. detail: more than a first table need show. place: from the left in tables.
    """

    name: str
    scale: str
    better: str
    judge: str = "none"
    title: str = ""
    scale_shown: bool = False
    share: bool = False
    detail: bool = False
    place: int = 50


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """What a metric may look at: N images and M targets, what judges see in them, the items they are of.

    images, targets: [N,H,W,3] uint8, row i of both of item i. features, target_features: [N,D], [M,D] of the
    feature judge. read, read_targets, text: of the CLIP judge, of images, targets and captions; None without
    one. training: [N-1,D] features of real training images, None without. Of two folders there are features
    alone.
    """

    images: np.ndarray
    targets: np.ndarray
    examples: Sequence[Example]
    features: np.ndarray
    target_features: np.ndarray
    read: np.ndarray | None = None
    read_targets: np.ndarray | None = None
    text: np.ndarray | None = None
    training: np.ndarray | None = None


class Metric(Protocol):
    """A metric of items: one value each, of which records hold the mean with its interval.

    spec.name: as no other metric's. device: where a metric has it, a run puts its own there.
    """

    @property
    def spec(self) -> MetricSpec:
        """What it is called and needs."""

    def items(self, scored: Scored) -> np.ndarray | None:
        """Return [N] float values, NaN where an item has none; None where it lacks a judge."""


class Task(Protocol):
    """Image -> condition, and how well a sample obeys it; raise version where either changes meaning."""

    name: str
    channels: int
    version: int
    metrics: tuple[MetricSpec, ...]

    def condition(self, example: Example) -> np.ndarray:
        """Return the condition of an item, [C,H,W] float32 in [0, 1]; a pure function of it."""

    def fidelity(self, image: np.ndarray, example: Example) -> dict[str, float]:
        """Score how an image ([H,W,3] uint8) obeys the item's condition, by metric name."""


class Denoiser(Protocol):
    """What every method returns, so that one loop, one sampler and one evaluator serve all."""

    def encode(self, condition: torch.Tensor) -> Any:
        """Do the work that depends on the condition ([B,C,H,W] in [0, 1]) alone: once an image."""

    def __call__(
        self, latents: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor, features: Any
    ) -> torch.Tensor:
        """Predict the noise: latents [B,4,h,w], timesteps [B], text [K,B,L,D] -> [K,B,4,h,w]."""


def check_condition(condition: torch.Tensor, *, channels: int, multiple: int, of: str) -> None:
    """Raise ValueError unless a condition is [B,channels,H,W] floating point, H and W multiples of a number.

    of: what that number is, in words.
    """
    shape = list(condition.shape)
    if len(shape) != 4 or shape[1] != channels:
        raise ValueError(f"condition is {shape}; allowed: [B,{channels},H,W].")
    if any(side < multiple or side % multiple for side in shape[2:]):
        allowed = f"height and width divisible by {multiple} ({of})"
        raise ValueError(f"condition is {shape[2]} x {shape[3]} pixels; allowed: {allowed}.")
    if not condition.is_floating_point():
        allowed = "floating point in [0, 1] (divide 8-bit images by 255)"
        raise ValueError(f"condition is {condition.dtype}; allowed: {allowed}.")


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """How diffusers knows the weights of a method.

    parts: names that a pipeline gives to them, the method's own first. classes: name -> class, where the
    class is the method's. pipeline: the class that samples with them. usage: lines of Python that load them
    and draw an `image` from a `condition`, with torch imported, to be filled in: {folder}, {base}, {prompt},
    {channels} of the condition, {downscale}, {inputs} that a UNet then has, {size} in pixels, {steps},
    {guidance} and both as {sampling} of a pipeline; whole: the same for a folder that holds the base too.
    """

    parts: tuple[str, ...]
    classes: Mapping[str, tuple[str, str]]
    pipeline: str
    usage: str
    whole: str


class Method(Protocol):
    """A way of adding an image condition to a frozen base.

    title: its name in tables. conditioned: whether it uses the condition at all. options: what
    `build` takes, with the defaults; `allowed`, where a method has it, says what each takes. Options that
    depend on the task, as a default may, are put in place by a method `settled(options, task)`: what it
    returns is what `build` is given and the record holds. What else a denoiser may have:

    starts_as_base = False: it differs from the base before training.
    warp_timesteps: timesteps [B] int64 as drawn, uniform over the diffusion's T -> those to train at, alike,
        each from its own row alone.
    at_timesteps: (features, timesteps [B]) -> what depends on both alone, to be given in place of features at
        those timesteps, once for several draws; of one condition it serves latents of any number of rows.
    layer_weights: () -> {slot: (at the start, now)}; the run keeps those that training moved.
    rate_factors: () -> {name of a parameter: what its learning rate is multiplied with}.

    A method whose weights can come from outside, and be exported, has `exchange` (an Exchange) and two
    methods. `load(denoiser, source)` puts the weights of a bench.base.weights.Source into a built denoiser
    and returns what a record should say of them (name -> text); BenchError where they do not fit.
    `save(denoiser, folder)` writes the denoiser's trained weights as diffusers loads them.
    """

    name: str
    title: str
    source: str
    conditioned: bool
    options: Mapping[str, Any]

    def build(self, base: Any, task: Task, **options: Any) -> torch.nn.Module:
        """Return a Denoiser (an nn.Module); its trainable parameters have requires_grad."""


def refusal(method: Method, task: Task) -> str | None:
    """Return why a method cannot do a task, as its `refuses(task)` says where it has one, else None."""
    refuses = getattr(method, "refuses", None)
    return refuses(task) if refuses is not None else None
