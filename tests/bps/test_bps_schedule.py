"""Layer-weight schedules and the cheap package import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import bps
from bps.schedule import SCHEDULES, is_learned, layer_weights, slot_weight

ENCODER_SLOTS = (1, 2, 4, 5, 7, 8, 10, 11)


def live(schedule):
    return [slot_weight(schedule, slot=slot) for slot in (*ENCODER_SLOTS, 12)]


def test_head_heavy_is_the_papers():
    assert live("head_heavy") == [16, 16, 8, 8, 4, 4, 2, 2, 16]
    assert layer_weights("head_heavy") == (16, 16, 1, 8, 8, 1, 4, 4, 1, 2, 2, 1, 16)


def test_head_heavy_xl_is_the_releases_larger_class():
    assert layer_weights("head_heavy_xl") == (32, 32, 1, 16, 16, 1, 8, 8, 1, 4, 4, 1, 32)


def test_foot_heavy_mirrors_the_encoder_and_keeps_the_numbers():
    assert live("foot_heavy") == [2, 2, 4, 4, 8, 8, 16, 16, 16]
    assert live("foot_heavy")[:8] == live("head_heavy")[:8][::-1]
    assert sorted(layer_weights("foot_heavy")) == sorted(layer_weights("head_heavy"))


def test_uniform_and_learned():
    assert set(layer_weights("uniform")) == {1.0}
    learned = [name for name in SCHEDULES if is_learned(name)]
    assert learned == ["learned", "learned_log"]
    assert all(layer_weights(name) == layer_weights("head_heavy") for name in learned)


def test_a_list_weighs_slots_by_position():
    numbers = list(range(13))
    assert live(numbers) == [0, 1, 3, 4, 6, 7, 9, 10, 12]


@pytest.mark.parametrize("bad", [[1.0] * 12, [1.0] * 14, [1.0] * 12 + [float("nan")]])
def test_a_wrong_list_is_refused(bad):
    with pytest.raises(ValueError, match=r"allowed: 13 finite numbers, or one of head_heavy"):
        layer_weights(bad)


def test_an_unknown_name_is_refused_with_a_hint():
    with pytest.raises(ValueError, match=r"'hed_heavy'. Did you mean 'head_heavy'\? Allowed: .*"):
        layer_weights("hed_heavy")
    with pytest.raises(
        ValueError, match="Allowed: foot_heavy, head_heavy, head_heavy_xl, learned, learned_log, uniform"
    ):
        layer_weights("zzz")


def test_importing_the_package_imports_neither_torch_nor_diffusers():
    code = "import sys, bps; print([m for m in ('torch', 'diffusers') if m in sys.modules])"
    root = str(Path(bps.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


def test_public_names_resolve_and_others_do_not():
    assert set(bps.__all__) <= set(dir(bps))
    for name in bps.__all__:
        assert getattr(bps, name).__name__ == name
    with pytest.raises(AttributeError, match="BPSAdaptor"):
        bps.BPSAdaptor  # noqa: B018
