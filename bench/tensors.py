"""Reads tensors from files that somebody else wrote, without running any code of theirs."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.types import BenchError, lacks_memory

if TYPE_CHECKING:
    import torch

_POINTER = b"version https://git-lfs"
_NESTED = 4  # how deep trainers put a state dict into others


def open_tensors(path: Path, *, framework: str = "pt") -> dict[str, Any]:
    """Map a safetensors file: name -> a slice, of which no more is read than is asked for.

    framework: what it gives, "pt" for torch or "numpy". BenchError for a damaged file.
    """
    from safetensors import safe_open

    try:
        file = safe_open(path, framework=framework)
        return {name: file.get_slice(name) for name in file.keys()}
    except MemoryError:
        raise
    except Exception as error:  # the library's own kind, and whatever its reader meets
        raise _damaged(path, error) from error


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file or a pickled state dict by name, on the CPU.

    BenchError for a damaged file, a pickle with anything but data in it, and tensors that are not plain
    (sparse, quantised, expanded, without contents).
    """
    try:
        found = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    except Exception as error:  # the libraries raise many kinds for a damaged file
        if lacks_memory(error):
            raise BenchError(
                f"{path} asks for more memory than there is: it is too large for this machine, or damaged."
            ) from error
        raise _damaged(path, error) from error
    odd = [name for name, tensor in found.items() if not _is_plain(tensor)]
    if odd:
        raise BenchError(f"{path}: {odd[0]} is no plain tensor (sparse, quantised, expanded or empty).")
    return found


def not_finite(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the names of the tensors that hold NaN or an infinity."""
    floating = {n: t for n, t in tensors.items() if t.is_floating_point()}
    return [name for name, tensor in floating.items() if not bool(tensor.isfinite().all())]


def _damaged(path: Path, error: Exception) -> BenchError:
    if _is_pointer(path):
        return BenchError(f"{path} is a pointer of Git LFS, not the weights. Fetch them: git lfs pull")
    said = (str(error).splitlines() or [""])[0] or type(error).__name__
    hint = "Fetch it again." if path.suffix == ".safetensors" else "Save its state dict as safetensors."
    return BenchError(f"{path} cannot be read as tensors alone ({said}). {hint}")


def _safetensors(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(path)


def _pickled(path: Path) -> dict[str, Any]:
    import torch

    mapped = zipfile.is_zipfile(path)  # torch's older format cannot be mapped
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    for _ in range(_NESTED):  # as trainers nest it; a file may also hold itself
        if not isinstance(state.get("state_dict"), dict):
            return {str(name): v for name, v in state.items() if isinstance(v, torch.Tensor)}
        state = state["state_dict"]
    raise ValueError("its state_dict has no end")


def _is_plain(tensor: torch.Tensor) -> bool:
    import torch

    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return tensor.nbytes <= tensor.untyped_storage().nbytes()  # else a few bytes stand for terabytes


def _is_pointer(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_POINTER)) == _POINTER
    except OSError:
        return False
