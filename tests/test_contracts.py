"""What every method promises, for every row of the tables: a new row is tested at once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import registry
from bench.base.load import Base
from bench.check import check_method
from bench.config import RunConfig, Training
from bench.content import Cache
from bench.cost import count_macs, count_parameters
from bench.data.latents import Prepared, prepare
from bench.data.openmoji import OpenMoji64, openmoji64_splits
from bench.suites import EMOJI, method_of
from bench.training.checkpoint import Trainable, load_weights, save_weights
from bench.training.loop import training_loss
from bench.types import BenchError

# Every method on sketches and every task with one method; all pairs of the others, and variants on
# sketches, among the slow tests.
every_row = pytest.mark.parametrize(
    ("name", "task"),
    [
        pytest.param(name, task, marks=[] if task == "sketch" or name == "bps" else [pytest.mark.slow])
        for name in sorted(registry.names("method", ["all"]))
        for task in sorted(EMOJI.tasks)
    ]
    + [
        pytest.param(name, "sketch", marks=pytest.mark.slow) for name in registry.groups("method")["variants"]
    ],
)


@pytest.fixture(scope="module")
def prepared(micro_base: Base, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Prepared]:
    cache = Cache(tmp_path_factory.mktemp("contracts"))
    ids = openmoji64_splits().val[:6]
    return {
        name: prepare(
            micro_base,
            dataset=OpenMoji64(),
            ids=ids,
            task=registry.load("task", name),
            mirror=False,
            cache=cache,
        )
        for name in EMOJI.tasks
    }


def built(name: str, task: str, base: Base, *, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    method, options = method_of(RunConfig(method=name, task=task))
    return method.build(base, registry.load("task", task), **options)


def call(denoiser: Any, data: Prepared, rows: slice, *, branches: str = "both") -> torch.Tensor:
    latents = torch.randn(data.latents[0].shape, generator=torch.Generator().manual_seed(0))[rows]
    empty = data.empty.expand_as(data.text)
    text = torch.stack({"both": [empty, data.text], "prompt": [data.text], "empty": [empty]}[branches])
    steps = torch.tensor([3, 250, 500, 700, 900, 999])[rows]
    with torch.no_grad():
        return denoiser(latents, steps, text[:, rows], denoiser.encode(data.conditions[0, rows]))


Shaken = Callable[[str, str], Any]


@pytest.fixture(scope="module")
def shaken(micro_base: Base, prepared: dict[str, Prepared]) -> Shaken:
    """Return each method after a few optimiser steps, so that nothing is zero any more; read-only."""

    @functools.cache
    def make(name: str, task: str) -> Any:
        denoiser = built(name, task, micro_base)
        parameters = list(Trainable(denoiser).parameters.values())
        if parameters:
            optimiser = torch.optim.AdamW(parameters, lr=1e-3)
            for step in range(3):
                training_loss(
                    denoiser,
                    base=micro_base,
                    data=prepared[task],
                    training=Training(batch=4),
                    seed=0,
                    step=step,
                ).backward()
                optimiser.step()
                optimiser.zero_grad()
        return denoiser.eval()

    return make


@every_row
def test_shape_dtype_and_finite(name: str, task: str, prepared: dict[str, Prepared], shaken: Shaken) -> None:
    eps = call(shaken(name, task), prepared[task], slice(0, 4))
    assert eps.shape == (2, 4, 4, 16, 16) and eps.dtype == torch.float32
    assert torch.isfinite(eps).all()


@every_row
def test_branches_are_independent(
    name: str, task: str, prepared: dict[str, Prepared], shaken: Shaken
) -> None:
    denoiser, data = shaken(name, task), prepared[task]
    both = call(denoiser, data, slice(0, 4))
    for k, branch in enumerate(("empty", "prompt")):
        alone = call(denoiser, data, slice(0, 4), branches=branch)
        assert torch.allclose(both[k], alone[0], atol=1e-4)


@every_row
def test_an_item_does_not_depend_on_its_batch_mates(
    name: str, task: str, prepared: dict[str, Prepared], shaken: Shaken
) -> None:
    denoiser, data = shaken(name, task), prepared[task]
    many = call(denoiser, data, slice(0, 6))
    for rows in (slice(0, 1), slice(1, 3), slice(3, 6)):
        assert torch.allclose(many[:, rows], call(denoiser, data, rows), atol=1e-4)


@every_row
def test_what_several_draws_share_moves_no_bit(
    name: str, task: str, prepared: dict[str, Prepared], shaken: Shaken
) -> None:
    """A denoiser's `at_timesteps` stands for its features at those timesteps."""
    denoiser, data = shaken(name, task), prepared[task]
    at_timesteps = getattr(denoiser, "at_timesteps", lambda features, timesteps: features)
    latents, steps = torch.randn(4, *data.latent_shape), torch.tensor([3, 250, 700, 999])
    with torch.no_grad():
        features = denoiser.encode(data.conditions[0, :4])
        shared = at_timesteps(features, steps)
        for z in (latents, latents.flip(0)):
            found, plain = (denoiser(z, steps, data.text[None, :4], f) for f in (shared, features))
            assert torch.equal(found, plain)


@every_row
def test_saved_and_loaded_weights_are_equal(
    name: str,
    task: str,
    micro_base: Base,
    prepared: dict[str, Prepared],
    shaken: Shaken,
    tmp_path: Path,
) -> None:
    trained, data = shaken(name, task), prepared[task]
    save_weights(tmp_path / "weights.safetensors", Trainable(trained))
    seed = 0 if "no-prior-frozen" in name else 9  # what is random and frozen is the seed's, not trained
    fresh = built(name, task, micro_base, seed=seed).eval()
    load_weights(tmp_path / "weights.safetensors", Trainable(fresh))
    assert torch.equal(call(fresh, data, slice(0, 4)), call(trained, data, slice(0, 4)))


@every_row
def test_the_integration_check_holds(
    name: str, task: str, micro_base: Base, prepared: dict[str, Prepared]
) -> None:
    method, options = method_of(RunConfig(method=name, task=task))
    findings = check_method(
        method, base=micro_base, task=registry.load("task", task), data=prepared[task], options=options
    )
    assert len(findings) >= 2
    assert [f.statement for f in findings if not f.holds] == []


@every_row
def test_cost_is_measured(name: str, task: str, micro_base: Base, prepared: dict[str, Prepared]) -> None:
    denoiser = built(name, task, micro_base)
    total, trainable = count_parameters(denoiser)
    unet = sum(p.numel() for p in micro_base.unet.parameters())
    assert total >= unet and trainable == sum(p.numel() for p in Trainable(denoiser).parameters.values())
    macs, encode = count_macs(denoiser, base=micro_base, data=prepared[task])
    floor, _ = count_macs(built("text-only", task, micro_base), base=micro_base, data=prepared[task])
    assert macs >= floor > 0
    assert (macs + encode > floor) == (total > unet)


@every_row
def test_the_row_is_described_and_unknown_options_are_refused(
    name: str, task: str, micro_base: Base, prepared: dict[str, Prepared]
) -> None:
    method = registry.load("method", name)
    assert (
        method.name == (registry.row("method", name).variant_of or name)
        and method.title
        and "http" in method.source
    )
    with pytest.raises(BenchError, match="unknown option"):
        method_of(RunConfig(method=name, options={"no-such-option": 1}))


def test_methods_have_one_title_everywhere_and_say_what_their_options_take() -> None:
    named = {name: row for name, row in registry.rows("method").items() if not row.variant_of}
    methods = {name: registry.load("method", name) for name in named}
    assert {name: m.title for name, m in methods.items()} == {n: row.title for n, row in named.items()}
    for method in methods.values():
        assert set(getattr(method, "allowed", {})) == set(method.options)
