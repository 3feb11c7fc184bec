"""Files of tensors from outside: read without running their code, damage named, nothing without end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bench.base.weights import not_finite, open_tensors, read_tensors
from bench.types import BenchError


def held_by_itself() -> dict[str, Any]:
    state: dict[str, Any] = {"x": torch.ones(1)}
    state["state_dict"] = state
    return state


ODD = {
    "held by itself": held_by_itself(),
    "sparse": {"x": torch.eye(3).to_sparse()},
    "without contents": {"x": torch.ones(3, device="meta")},
    "quantised": {"x": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)},
    "expanded": {"x": torch.ones(1).expand(1 << 40)},
    "a list": [torch.ones(1)],
    "a tensor": torch.ones(1),
    "code": {"x": Path.touch},
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_plain_state_dict_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.ckpt"
    torch.save(ODD[kind], path)
    with pytest.raises(BenchError, match="odd.ckpt"):
        read_tensors(path)


def test_a_nested_state_dict_gives_its_tensors_alone(tmp_path: Path) -> None:
    path = tmp_path / "trainer.ckpt"
    state = {"x": torch.arange(3.0), "epoch": 3, "extra": [torch.ones(1)]}
    torch.save({"state_dict": {"state_dict": state}, "optimizer": torch.zeros(1)}, path)
    found = read_tensors(path)
    assert list(found) == ["x"] and torch.equal(found["x"], state["x"])


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "cannot be read"),
        (b"\xff" * 64, "cannot be read"),
        (b"\x02" + b"\0" * 7 + b"{}", ""),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_an_odd_safetensors_header_is_an_error_of_the_project(
    content: bytes, named: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    for read in (read_tensors, open_tensors):
        if named:
            with pytest.raises(BenchError, match=f"x.safetensors.*{named}"):
                read(path)
        else:
            assert read(path) == {}


def test_tensors_with_nan_or_infinity_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    bad = {"nan": torch.tensor([1.0, float("nan")]), "inf": torch.tensor([float("-inf")]).half()}
    save_file({**bad, "fine": torch.ones(2), "whole": torch.tensor([1])}, path)
    assert sorted(not_finite(read_tensors(path))) == ["inf", "nan"]
