"""Weights from outside: read without running code of theirs, named by digest, put into a method."""

from __future__ import annotations

import contextlib
import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open

from bench.base import quiet
from bench.content import digest_json, read_json, refusing, sha256_file
from bench.types import BenchError, Example, Exchange, Method, MetricSpec, Task, lacks_memory, some

if TYPE_CHECKING:
    import torch

_TENSORS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")  # best first
_VARIANTS = (".fp16.", ".bf16.", ".non_ema.", ".ema.")
_COLOURS = 3
_HINTS = {
    "condition channels": "Where the task has one channel and the weights take three, "
    "--condition-channels repeat gives it three times.",
    "cross_attention_dim": "Stable Diffusion 1.x has 768, 2.x has 1024: give the base that they were "
    "made for with --base.",
    "widths": "Give the base that they were made for with --base.",
}
_POINTER = b"version https://git-lfs"
_NESTED = 4  # how deep trainers put a state dict into others
DRAWN = 'image = pipe("{prompt}", image=condition, {sampling}).images[0]\n'
"""How a pipeline draws under a condition, as a line of an Exchange."""
DRAWN_BY_TEXT = 'image = pipe("{prompt}", height={size}, width={size}, {sampling}).images[0]\n'
"""How a pipeline draws without one."""


def open_tensors(path: Path, *, framework: str = "pt") -> dict[str, Any]:
    """Map a safetensors file for "pt" or "numpy": name -> slice, read when asked; BenchError if damaged."""
    with _refused_if_damaged(path):
        file = safe_open(path, framework=framework)
        return {name: file.get_slice(name) for name in file.keys()}


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file or a pickled state dict by name, on the CPU.

    BenchError for a damaged file, a pickle with anything but data in it, and tensors that are not plain
    (sparse, quantised, expanded, without contents).
    """
    from safetensors.torch import load_file

    with _refused_if_damaged(path):
        tensors = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
        for name, tensor in tensors.items():
            plain = str(tensor.layout) == "torch.strided" and tensor.device.type == "cpu"
            if not plain or tensor.is_quantized or tensor.nbytes > tensor.untyped_storage().nbytes():
                raise ValueError(f"{name} is no plain tensor: sparse, quantised, expanded or empty")
    return tensors


def _unpickled(path: Path) -> dict[str, Any]:
    import torch

    mapped = zipfile.is_zipfile(path)  # torch's older format cannot be mapped
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    for _ in range(_NESTED):  # as trainers nest it; a file may also hold itself
        if not isinstance(state.get("state_dict"), dict):
            return {str(name): v for name, v in state.items() if isinstance(v, torch.Tensor)}
        state = state["state_dict"]
    raise ValueError("its state_dict has no end")


@contextlib.contextmanager
def _refused_if_damaged(path: Path) -> Iterator[None]:
    """Turn the many kinds of errors that libraries raise for a file into one; memory has its own."""
    try:
        yield
    except Exception as error:
        if lacks_memory(error):
            raise BenchError(f"{path} asks for more memory than there is: too large, or damaged.") from error
        with contextlib.suppress(OSError), open(path, "rb") as file:
            if file.read(len(_POINTER)) == _POINTER:
                pointer = f"{path} is a pointer of Git LFS, not the weights. Fetch them: git lfs pull"
                raise BenchError(pointer) from error
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        remedy = "Fetch it again." if path.suffix == ".safetensors" else "Save its state dict as safetensors."
        raise BenchError(f"{path} cannot be read as tensors alone ({reason}). {remedy}") from error


def not_finite(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the names of the tensors that hold NaN or an infinity."""
    return [n for n, t in tensors.items() if t.is_floating_point() and not bool(t.isfinite().all())]


def read_model(kind: Any, folder: Path, **options: Any) -> Any:
    """Return a model of a class of diffusers or transformers with every weight of its own read, no other.

    options: of from_pretrained, as dtype, variant and subfolder; nothing is fetched. BenchError for a folder
    that cannot be loaded as this class, and for weights that are missing, too many or of other shapes.
    """
    quiet()
    place, how = folder / options.get("subfolder", ""), {"local_files_only": True, **options}
    with refusing(lambda why: f"{place} cannot be loaded as {kind.__name__} ({why})."):
        model, report = kind.from_pretrained(folder, output_loading_info=True, **how)
    for what, names in report.items():
        if names:
            listed = some(sorted(map(str, names)))
            raise BenchError(f"{place} does not fit its own config.json: {what.replace('_', ' ')}: {listed}.")
    return model


def one_part(
    part: str, kind: str, pipeline: str, *, home: str = "diffusers", drawn: str = DRAWN, note: str = ""
) -> Exchange:
    """Describe weights of one part, which a class loads and a pipeline of diffusers takes by its name.

    home: where class and pipeline are imported from; drawn: the line that draws; note: of both programs.
    """
    drawn += note
    taken = f"safety_checker=None, feature_extractor=None, dtype=torch.float32)\n{drawn}"
    return Exchange(
        parts=(part,),
        classes={part: (home, kind)},
        pipeline=pipeline,
        usage=f"from {home} import {kind}, {pipeline}\n"
        f'{part} = {kind}.from_pretrained("{{folder}}")\n'
        f'pipe = {pipeline}.from_pretrained(\n    "{{base}}", {part}={part}, {taken}',
        whole=f'from {home} import {pipeline}\npipe = {pipeline}.from_pretrained("{{folder}}")\n{drawn}',
    )


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What a run is given to start from.

    path: a folder that diffusers loads, or a file. train: whether the run trains on from them. channels:
    how the task's condition becomes theirs: "same", or "repeat" (one channel given three times).
    invert: whether it is turned over, 1 - x, before.
    """

    path: Path
    train: bool = False
    channels: str = "same"
    invert: bool = False

    @property
    def form(self) -> str:
        """The condition's form in words, "" where it is the task's own."""
        return ", ".join(["repeat"] * (self.channels != "same") + ["invert"] * self.invert)


class ShownTask:
    """A task whose condition has the form that weights from outside were made for.

    Fidelity stays that of the task. Raises BenchError where one channel is to be repeated and the task
    has another number of them.
    """

    def __init__(self, task: Task, weights: Weights) -> None:
        self.name = f"{task.name} ({weights.form})"
        self.version, self.fidelity = task.version, task.fidelity
        self.metrics: tuple[MetricSpec, ...] = task.metrics
        self.channels = _COLOURS if weights.channels == "repeat" else task.channels
        self._invert = weights.invert
        self._task = task
        if weights.channels == "repeat" and task.channels != 1:
            has = f"task {task.name} has {task.channels} channels"
            raise BenchError(f"--condition-channels repeat: {has}; allowed: a task with one. Leave it away.")

    def condition(self, example: Example) -> np.ndarray:
        """Return the task's condition in this form, [C,H,W] float32 in [0, 1]."""
        condition = self._task.condition(example)
        turned = 1 - condition if self._invert else condition
        return np.repeat(turned, self.channels // len(turned), axis=0)


def shown(task: Task, weights: Weights | None) -> Task:
    """Return the task as weights from outside see it: as it is where they take its own form."""
    return task if weights is None or not weights.form else ShownTask(task, weights)


class Source:
    """A folder or file with weights, and the SHA-256 of every file that may be read of it.

    parts: of a whole pipeline (model_index.json), the sub-folders that matter. files: name inside the
    folder -> SHA-256; sha256: of the file, or of all those. name: of the folder or file; of a hub's cache,
    the repository's and the revision. label: that and the first 8 digits of sha256. BenchError where
    there is nothing to read.
    """

    def __init__(self, path: Path, *, parts: Sequence[str] = ()) -> None:
        if not path.exists():
            raise BenchError(f"--weights {path}: there is no such folder or file.")
        place = path.resolve() if path.name in ("", ".", "..") else path
        hub = place.parent.name == "snapshots"
        repository = place.parent.parent.name.removeprefix("models--")
        self.path, self.name = path, f"{repository}@{place.name[:8]}" if hub else place.name
        self._parts = tuple(parts) if (path / "model_index.json").exists() else ()
        roots = [] if path.is_file() else [path / p for p in self._parts] or [path]
        found = [p for root in roots for p in root.rglob("*") if p.is_file()]
        # of weights in several formats only the best, of several precisions only the plain one
        plain = [p for p in found if not any(mark in p.name for mark in _VARIANTS)]
        best = {p.with_suffix(""): p for s in reversed(_TENSORS) for p in plain if p.suffix == s}
        configs = [p for p in found if p.name == "config.json" or p.name.endswith(".index.json")]
        files = sorted([*configs, *best.values()]) if roots else [path]
        if not any(file.suffix in _TENSORS for file in files):
            formats = ", ".join(f"*{suffix}" for suffix in _TENSORS)
            raise BenchError(
                f"--weights {path} holds no weights ({formats}). Give a folder that diffusers loads "
                "(config.json and its weights; a variant alone, *.fp16.*, is not read), or a checkpoint file."
            )
        self.is_file = path.is_file()
        root = path.parent if self.is_file else path
        self.files = {file.relative_to(root).as_posix(): sha256_file(file) for file in files}
        self.sha256 = self.files[path.name] if self.is_file else digest_json(self.files)
        self.label = f"{self.name}@{self.sha256[:8]}"

    def folder(self, part: str = "") -> Path:
        """Return the folder of a part; the root stands for the first part of what is no pipeline."""
        return self.path / (part or next(iter(self._parts), ""))

    def model(self, kind: Any, *, part: str = "") -> Any:
        """Return a diffusers model of a class, float32, every weight read; BenchError where unfit."""
        import torch

        folder = self.folder(part)
        remedy = f"Give a folder that {kind.__name__}.save_pretrained wrote."
        config = read_json(folder / "config.json", loose=True, remedy=remedy)
        held = config.get("_class_name") if isinstance(config, dict) else None
        if held != kind.__name__:
            raise BenchError(f"{folder} holds a {held}; needed: a {kind.__name__}. {remedy}")
        safe = any(folder.glob("*.safetensors"))
        model = read_model(kind, folder, dtype=torch.float32, use_safetensors=safe)
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()  # mapped from a file, kernels may depend on its address
        return model

    def tensors(self, name: str = "") -> dict[str, torch.Tensor]:
        """Return the tensors of a file (of the folder) by name, as they are stored, on the CPU."""
        return read_tensors(self.path if self.is_file else self.folder() / name)

    def digest(self, tensors: Mapping[str, torch.Tensor]) -> str:
        """Return one SHA-256 over named tensors: names, types, shapes and bytes, in the names' order."""
        import torch

        total = hashlib.sha256()
        for name in sorted(tensors):
            tensor = tensors[name].detach().cpu().contiguous()
            total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return total.hexdigest()

    def fit_shapes(self, have: Mapping[str, torch.Tensor], needed: Mapping[str, torch.Tensor]) -> None:
        """Raise BenchError unless two state dicts have the same names and shapes."""
        self.fit(*({name: list(tensor.shape) for name, tensor in state.items()} for state in (have, needed)))

    def fit(self, have: Mapping[str, Any], needed: Mapping[str, Any]) -> None:
        """Raise BenchError unless what the weights were made for is what base, task and options say."""
        have, needed = (json.loads(json.dumps(dict(values))) for values in (have, needed))
        wrong = [key for key in {**needed, **have} if have.get(key) != needed.get(key)]
        if wrong:
            gaps = [f"{key} {have.get(key)}, needed {needed.get(key)}" for key in wrong]
            hints = [hint for key, hint in _HINTS.items() if key in wrong]
            raise BenchError(" ".join([f"{self.name} does not fit: {some(gaps, mark='; ')}.", *hints]))


def open_source(weights: Weights | None, method: Method) -> Source | None:
    """Open what a run is given for a method; BenchError for a method that takes no weights."""
    if weights is None:
        return None
    exchange = getattr(method, "exchange", None)
    if exchange is None:
        raise BenchError(f"method {method.name} takes no weights from outside. Leave --weights away.")
    return Source(weights.path, parts=exchange.parts)


def load_into(denoiser: Any, *, method: Any, source: Source) -> dict[str, str]:
    """Put weights into a denoiser; return facts for its record. BenchError where unfit or not finite."""
    kinds = AttributeError, LookupError, RuntimeError  # tensors of other shapes or names
    with refusing(lambda why: f"--weights {source.path} does not fit method {method.name} ({why}).", *kinds):
        facts: dict[str, str] = method.load(denoiser, source)
    if wrong := not_finite(denoiser.state_dict()):
        remedy = "Nothing that is drawn with them could be scored. Fetch or train them again."
        raise BenchError(f"--weights {source.path} has weights that are not finite: {some(wrong)}. {remedy}")
    return facts


def described(weights: Weights | None, source: Source | None) -> dict[str, Any]:
    """Return what a record's options say of weights from outside; nothing without any."""
    if weights is None or source is None:
        return {}
    form = {"condition_channels": weights.channels} if weights.channels != "same" else {}
    turned = {"invert_condition": True} if weights.invert else {}
    trained = {} if weights.train else {"no_train": True}
    return {"weights": source.label, **trained, **form, **turned}
