"""The fair loop: what every method sees, bits after a resume, samples free of their batch-mates."""

from __future__ import annotations

import copy
import itertools
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bench import registry
from bench.base.load import Base
from bench.config import PRECISIONS, RunSpec, Sampler, Training
from bench.content import Cache
from bench.data.latents import STORAGES, Prepared, mirrored, prepare
from bench.data.openmoji import OpenMoji64, openmoji64_splits
from bench.randomness import derangement, generator, initial_noise
from bench.sampling import (
    build_scheduler,
    folder_of_draw,
    load_images,
    sample_images,
    sample_latents,
    sample_to_folders,
    to_bytes,
)
from bench.suites import RELEASED
from bench.training.checkpoint import Trainable, Writer
from bench.training.engine import autocast
from bench.training.loop import draw_batch, learning_rate_factor, train, training_loss
from bench.types import BenchError, Hooks, Stopped
from bps.method import BPS
from tests.asking import Asked, specified
from tests.tolerances import TOLERANCES

TRAINING = Training(batch=4)


@pytest.fixture(scope="module")
def data(micro_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    ids = openmoji64_splits().val[:10]
    return prepare(
        micro_base,
        dataset=OpenMoji64(),
        ids=ids,
        task=registry.load("task", "sketch"),
        mirror=True,
        cache=Cache(tmp_path_factory.mktemp("prepared")),
    )


def steered(base: Base) -> Any:
    torch.manual_seed(3)
    return BPS().build(base, registry.load("task", "sketch"))


def run_training(base: Base, data: Prepared, folder: Path, hooks: Hooks | None = None, **asked: Any) -> Any:
    denoiser = steered(base)
    given = {"train_batch": 4, "train_images": 24, "learning_rate": 1e-3, "seed": 5, "checkpoint_every": 3}
    spec = specified(**{**given, **asked})
    return denoiser, train(denoiser, spec, base=base, data=data, folder=folder, hooks=hooks)


def sampling(sampler: Sampler, batch: int = 4) -> RunSpec:
    spec = specified(sample_batch=batch)
    return replace(spec, suite=replace(spec.suite, sampler=sampler))


def test_batches_depend_on_seed_and_step_alone(data: Prepared) -> None:
    one, same = (draw_batch(data, training=TRAINING, seed=1, step=2) for _ in range(2))
    other = draw_batch(data, training=TRAINING, seed=1, step=3)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[4], other[4])


def test_an_epoch_shows_every_item_once(data: Prepared) -> None:
    whole = Training(batch=10, drop_caption=0.0)
    text = draw_batch(data, training=whole, seed=0, step=0)[2]
    assert {t.numpy().tobytes() for t in text} == {t.numpy().tobytes() for t in data.text}


def test_examples_do_not_depend_on_the_batch_size(data: Prepared) -> None:
    small = [draw_batch(data, training=Training(batch=2), seed=4, step=s)[4] for s in range(2)]
    large = draw_batch(data, training=Training(batch=4), seed=4, step=0)[4]
    assert torch.equal(torch.cat(small), large)


def test_captions_are_dropped_at_the_stated_rate(data: Prepared) -> None:
    often = Training(batch=400, drop_caption=0.25)
    text = draw_batch(data, training=often, seed=0, step=0)[2]
    share = float((text == data.empty).all(dim=2).all(dim=1).float().mean())
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / 400) ** 0.5


def test_the_mirrored_view_is_the_mirror(micro_base: Base, data: Prepared) -> None:
    assert torch.equal(data.conditions[1], data.conditions[0].flip(-1))
    flipped = micro_base.encode_posterior(data.images(range(len(data)))[:, :, ::-1])[0]
    assert torch.allclose(data.latents[1], flipped, atol=1e-5)
    assert not torch.allclose(data.latents[0], data.latents[1], atol=1e-2)
    example = OpenMoji64()[data.ids[0]]
    twice = mirrored(mirrored(example))
    assert np.array_equal(twice.image, example.image)
    assert np.array_equal(twice.layers["boxes"], example.layers["boxes"])


def test_v_loss_is_the_error_of_v(micro_base: Base, data: Prepared) -> None:
    """With v = (eps - sigma z) / alpha at fixed z, (v - v*)^2 = (eps - eps*)^2 / alpha^2."""
    denoiser = steered(micro_base)
    latents, conditions, text, times, noise = draw_batch(data, training=TRAINING, seed=0, step=0)
    alpha = micro_base.alphas.float()[times].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    with torch.no_grad():
        eps = denoiser(noisy, times, text[None], conditions)[0]
        loss = training_loss(denoiser, base=micro_base, data=data, training=TRAINING, seed=0, step=0)
    predicted = (eps - (1 - alpha).sqrt() * noisy) / alpha.sqrt()
    wanted = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    assert float(loss) == pytest.approx(float((predicted - wanted).square().mean()), rel=1e-3)


def test_learning_rate_rises_then_falls_to_zero() -> None:
    factors = [learning_rate_factor(s, 100, 0.05) for s in range(101)]
    assert factors[4] == 1.0 and factors[0] == pytest.approx(0.2)
    assert factors[100] == pytest.approx(0.0, abs=1e-12)
    assert all(a >= b for a, b in zip(factors[5:], factors[6:], strict=False))


def test_a_constant_rate_stays_and_no_clipping_keeps_the_gradient(
    micro_base: Base, data: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the release trains: its rate never falls, its gradients are never clipped."""
    assert {learning_rate_factor(s, 100, 0.0, "constant") for s in range(101)} == {1.0}
    assert RELEASED["schedule"] == "constant" and RELEASED["clip_norm"] == 0
    seen: list[tuple[float, float]] = []
    plain = torch.nn.utils.clip_grad_norm_

    def watched(parameters: Any, norm: float, *rest: Any, **more: Any) -> Any:
        before = [p.grad.clone() for p in parameters]
        found = plain(parameters, norm, *rest, **more)
        changed = max(float((p.grad - g).abs().max()) for p, g in zip(parameters, before, strict=True))
        seen.append((norm, changed))
        return found

    monkeypatch.setattr("torch.nn.utils.clip_grad_norm_", watched)
    spec = specified(train_batch=4, train_images=8, learning_rate=1e-3)
    training = replace(spec.suite.training, **{**RELEASED, "latents": "mode"})
    spec = replace(spec, suite=replace(spec.suite, training=training))
    train(steered(micro_base), spec, base=micro_base, data=data, folder=tmp_path)
    assert seen == [(float("inf"), 0.0)] * 2


def test_a_random_caption_comes_at_every_visit(micro_base: Base, data: Prepared) -> None:
    class Told(OpenMoji64):
        def captions_of(self, item: str) -> list[str]:
            return [f"one of {item}", f"two of {item}", f"three of {item}"]

    items, asked = copy.copy(data), list[str]()
    items.dataset = Told()

    def encode(words: Sequence[str]) -> torch.Tensor:
        asked.extend(words)
        return micro_base.encode_text(list(words))

    several = Training(batch=10, captions="random", drop_caption=0.0)
    plain = Training(batch=10, drop_caption=0.0)
    for step in range(6):
        drawn = draw_batch(items, training=several, seed=0, step=step, encode=encode)
        fixed = draw_batch(data, training=plain, seed=0, step=step)
        rest = [0, 1, 3, 4]
        assert all(torch.equal(drawn[i], fixed[i]) for i in rest), "all else is as it was"
        assert torch.equal(drawn[2], micro_base.encode_text(asked[-10:]).float())
    assert {word.split()[0] for word in asked} == {"one", "two", "three"}
    with pytest.raises(BenchError, match="--captions random"):
        run_training(micro_base, data, Path("nowhere"), captions="random")


def test_a_stopped_training_resumes_to_the_same_bits(
    micro_base: Base, data: Prepared, tmp_path: Path
) -> None:
    whole, result = run_training(micro_base, data, tmp_path / "whole")
    with pytest.raises(Stopped) as stopped:
        run_training(micro_base, data, tmp_path / "cut", Asked([None] * 4 + [143]))
    assert stopped.value.code == 143
    resumed, again = run_training(micro_base, data, tmp_path / "cut")
    assert again.steps == result.steps == 6 and again.curve == result.curve
    for name, tensor in Trainable(whole).state_dict().items():
        assert torch.equal(tensor, Trainable(resumed).state_dict()[name]), name


def test_checkpoints_come_by_the_clock_from_copies(
    micro_base: Base, data: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes 4 minutes here: every third is the first past 10. Writing waits until training is over."""
    clock = itertools.count(step=240)
    watch = SimpleNamespace(monotonic=lambda: next(clock), perf_counter=time.perf_counter)
    monkeypatch.setattr("bench.training.loop.time", watch)
    go_on, states = threading.Event(), []

    def late(path: Path, state: Any, keep: int) -> None:
        assert go_on.wait(60)
        states.append(state)

    monkeypatch.setattr("bench.training.checkpoint._write", late)
    writer = Writer(tmp_path / "x.ckpt", keep=1)
    parameter = torch.nn.Parameter(torch.zeros(3))
    writer.save(step=1, weights=Trainable(torch.nn.ParameterList([parameter])))
    with torch.no_grad():
        parameter.add_(1.0)
    go_on.set()
    writer.wait()
    assert states.pop()["weights"]["0"].tolist() == [0.0] * 3, "what was, not what is"
    run_training(micro_base, data, tmp_path, checkpoint_every=None, checkpoint_minutes=10.0)
    assert [state["step"] for state in states] == [3, 6]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("storage", STORAGES)
def test_every_precision_reads_every_storage(
    micro_base: Base, tmp_path: Path, precision: str, storage: str
) -> None:
    """Shards hold text in float16, whatever is computed in."""
    items = prepare(
        micro_base,
        dataset=OpenMoji64(),
        ids=openmoji64_splits().val[:2],
        task=registry.load("task", "sketch"),
        mirror=False,
        cache=Cache(tmp_path),
        storage=storage,
    )
    denoiser = steered(micro_base)
    with autocast("cpu", precision):
        loss = training_loss(
            denoiser, base=micro_base, data=items, training=Training(batch=2), seed=0, step=0
        )
    loss.backward()
    assert loss.isfinite() and any(p.grad is not None for p in denoiser.parameters())
    spec = specified(precision=precision, sampling_steps=1)
    ((_, pixels),) = sample_images(denoiser, spec, base=micro_base, data=items)
    assert np.isfinite(pixels).all()


def test_a_checkpoint_that_cannot_be_written_is_said(
    micro_base: Base, data: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bench.training.checkpoint._write", full)
    with pytest.raises(OSError, match="No space left"):
        run_training(micro_base, data, tmp_path)


def test_the_frozen_prior_keeps_its_bits_and_has_no_gradients(
    micro_base: Base, data: Prepared, tmp_path: Path
) -> None:
    before = {n: p.clone() for n, p in micro_base.unet.named_parameters()}
    _, result = run_training(micro_base, data, tmp_path)
    assert result.dead == 0
    for name, parameter in micro_base.unet.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None, name


def test_a_loss_that_is_not_finite_stops_with_its_step(
    micro_base: Base, data: Prepared, tmp_path: Path
) -> None:
    with pytest.raises(BenchError, match=r"the loss is (nan|inf) at step \d+ of 6"):
        run_training(micro_base, data, tmp_path, learning_rate=1e6)


@pytest.mark.parametrize("name", [pytest.param("ddim", marks=pytest.mark.slow), "dpm++"])
def test_samples_do_not_depend_on_the_batch_size_nor_on_other_draws(
    micro_base: Base, data: Prepared, name: str
) -> None:
    """A batch of as many items gives the same bits, whatever is drawn beside; residuals are shared."""
    trained = steered(micro_base)
    with torch.no_grad():  # untrained residuals are exactly 0: shake them
        for parameter in Trainable(trained).parameters.values():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.manual_seed(1)))
    calls = []
    trained.steered.adapter.register_forward_hook(lambda *args: calls.append(len(args[1][0])))

    def images(batch: int, draws: int = 1) -> np.ndarray:
        spec = sampling(Sampler(name=name, steps=4, draws=draws), batch=batch)
        parts = sample_images(trained, spec, base=micro_base, data=data)
        return np.concatenate([pixels for _, pixels in parts], axis=1)

    alone = images(10)
    assert np.abs(alone - images(3)).max() < TOLERANCES.images
    calls.clear()
    three = images(10, draws=3)
    assert calls == [10] * 4
    assert np.array_equal(three[0], alone[0])
    assert np.abs(three - images(3, draws=3)).max() < TOLERANCES.images
    assert min(np.abs(three[i] - three[j]).max() for i, j in ((0, 1), (0, 2), (1, 2))) > 0.05


def test_sets_share_what_depends_on_conditions(micro_base: Base, data: Prepared, tmp_path: Path) -> None:
    """Residuals once a condition and timestep; pictures as of each set by itself; one condition for all."""
    trained = steered(micro_base)
    with torch.no_grad():
        for parameter in Trainable(trained).parameters.values():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.manual_seed(1)))
    order, own = derangement(3, len(data)), np.arange(len(data))
    spec = sampling(Sampler(steps=3, draws=2), batch=5)
    given = {
        "shuffled": lambda rows: data.conditions_at(order[rows]),
        "blank": lambda rows: data.conditions_at([0]).expand(len(rows), -1, -1, -1),
    }
    calls: list[int] = []
    handle = trained.steered.adapter.register_forward_hook(lambda *args: calls.append(len(args[1][0])))
    sets = {tmp_path / "samples": own, tmp_path / "shuffled": np.argsort(order)}
    spent: list[int] = []
    told = {"base": micro_base, "data": data, "spent": lambda seconds, images: spent.append(images)}
    sample_to_folders(trained, spec, sets, **told)
    one = {tmp_path / "blank": own}
    sample_to_folders(trained, spec, one, conditions=lambda rows: data.conditions_at([0]), **told)
    assert calls == [5] * 6 + [1] * 6 and spent == [20, 20, 10, 10]
    handle.remove()
    for name in ("samples", *given):
        parts = sample_images(trained, spec, base=micro_base, data=data, conditions=given.get(name))
        wanted = to_bytes(np.concatenate([pixels for _, pixels in parts], axis=1)).astype(int)
        for draw in range(2):
            found = load_images(folder_of_draw(tmp_path / name, draw), data.ids)
            assert np.abs(found - wanted[draw]).max() <= 1, name
    spent.clear()
    sample_to_folders(trained, spec, sets, **told)
    assert not spent, "all were there"


def test_every_example_keeps_its_own_condition_and_text(data: Prepared) -> None:
    training = Training(batch=20, drop_caption=0.0)
    latents, conditions, text, _, _ = draw_batch(data, training=training, seed=2, step=0)
    views = set()
    for z, condition, words in zip(latents, conditions, text, strict=True):
        rows = [r for r in range(len(data)) if torch.equal(words, data.text[r])]
        view = next(v for v in (0, 1) if torch.equal(z, data.latents[v, rows[0]]))
        assert torch.equal(condition, data.conditions[view, rows[0]])
        views.add(view)
    assert views == {0, 1}


def test_shuffled_samples_get_the_condition_they_are_said_to(micro_base: Base, data: Prepared) -> None:
    """A denoiser that paints its condition's mean shows whose condition each item got."""

    class Painter:
        def encode(self, condition: torch.Tensor) -> torch.Tensor:
            return condition.mean(dim=(1, 2, 3))

        def __call__(self, z: torch.Tensor, t: torch.Tensor, text: Any, mean: torch.Tensor) -> Any:
            alpha = micro_base.alphas.float()[t].view(-1, 1, 1, 1)
            target = mean.view(-1, 1, 1, 1).expand_as(z)
            eps = (z - alpha.sqrt() * target) / (1 - alpha).sqrt()
            return eps.expand(len(text), *eps.shape)

    order = derangement(3, len(data))
    means = data.conditions[0].mean(dim=(1, 2, 3))
    wanted = micro_base.decode(means[order].view(-1, 1, 1, 1).expand(-1, 4, 16, 16))
    spec = sampling(Sampler(steps=4))
    parts = sample_images(
        Painter(), spec, base=micro_base, data=data, conditions=lambda rows: data.conditions_at(order[rows])
    )
    got = np.concatenate([pixels[0] for _, pixels in parts])
    assert np.abs(got - wanted.permute(0, 2, 3, 1).numpy()).max() < 2e-3
    assert len(set(means.tolist())) == len(data)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_samples_that_are_not_finite_stop_and_leave_nothing(
    micro_base: Base, data: Prepared, tmp_path: Path, value: float
) -> None:
    class Broken:
        def encode(self, condition: torch.Tensor) -> None:
            return None

        def __call__(self, z: torch.Tensor, t: torch.Tensor, text: Any, features: Any) -> Any:
            return torch.full((len(text), *z.shape), value)

    with pytest.raises(BenchError, match="not finite"):
        sample_to_folders(
            Broken(), sampling(Sampler(steps=2)), {tmp_path: np.arange(len(data))}, base=micro_base, data=data
        )
    assert not list(tmp_path.iterdir())


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(
    micro_base: Base, data: Prepared, tmp_path: Path
) -> None:
    class Root(torch.nn.Module):
        """Loss 1 and gradient infinity: the square root at 0."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def encode(self, condition: torch.Tensor) -> None:
            return None

        def forward(self, z: torch.Tensor, t: Any, text: Any, features: Any) -> torch.Tensor:
            return (z * 0 + self.weight.abs().sqrt())[None]

    module = Root()
    with pytest.raises(BenchError, match="the gradient is (nan|inf)"):
        train(module, specified(train_batch=4, train_images=8), base=micro_base, data=data, folder=tmp_path)
    assert float(module.weight.detach()) == 0.0 and not (tmp_path / "train.ckpt").exists()


def test_guidance_one_is_the_prompt_alone(micro_base: Base, data: Prepared) -> None:
    denoiser = steered(micro_base)
    noise = torch.from_numpy(np.stack([initial_noise(0, i, (4, 16, 16)) for i in data.ids[:2]]))
    shared = {
        "base": micro_base,
        "noise": noise[None],
        "conditions": data.conditions[0, :2],
        "text": data.text[:2],
    }
    alone = sample_latents(denoiser, sampler=Sampler(steps=3, guidance=1.0), empty=data.empty, **shared)
    nothing = sample_latents(denoiser, sampler=Sampler(steps=3, guidance=0.0), empty=data.text[:1], **shared)
    assert torch.allclose(alone[0, 0], nothing[0, 0], atol=1e-4)
    assert not torch.allclose(alone[0, 1], nothing[0, 1], atol=1e-4)


def test_ddim_is_stable_diffusions(micro_base: Base) -> None:
    """Leading timesteps with offset 1 and the final alpha of step 0 (facts of the release)."""
    scheduler = build_scheduler(micro_base, Sampler(name="ddim", steps=50))
    assert scheduler.timesteps[0] == 981 and scheduler.timesteps[-1] == 1
    assert scheduler.final_alpha_cumprod == scheduler.alphas_cumprod[0]
    assert not scheduler.config["clip_sample"]


def test_samplers_follow_a_known_noise_exactly(micro_base: Base, data: Prepared) -> None:
    """Where eps points at one image, the path is a straight line with a closed form.

    DPM-Solver++ ends at noise 0: the image itself. DDIM ends at the alpha of step 0, as Stable
    Diffusion's does: the image with that little of the first eps left in it.
    """
    target, noise = data.latents[0, :2], torch.randn(2, 4, 16, 16)
    alphas = micro_base.alphas.float()

    class Oracle:
        def encode(self, condition: torch.Tensor) -> None:
            return None

        def __call__(self, z: torch.Tensor, t: torch.Tensor, text: Any, features: Any) -> Any:
            alpha = alphas[t].view(-1, 1, 1, 1)
            return ((z - alpha.sqrt() * target) / (1 - alpha).sqrt())[None]

    def end(name: str) -> torch.Tensor:
        return sample_latents(
            Oracle(),
            base=micro_base,
            sampler=Sampler(name=name, steps=10, guidance=1.0),
            noise=noise[None],
            conditions=data.conditions[0, :2],
            text=data.text[:2],
            empty=data.empty,
        )[0]

    assert torch.allclose(end("dpm++"), target, atol=2e-4)
    first, last = alphas[901], alphas[0]
    eps = (noise - first.sqrt() * target) / (1 - first).sqrt()
    assert torch.allclose(end("ddim"), last.sqrt() * target + (1 - last).sqrt() * eps, atol=2e-4)


def test_generators_are_apart_and_repeat() -> None:
    draws = {
        generator(s, p, i, n).integers(2**62)
        for s in (0, 1)
        for p in ("train", "sample")
        for i in ("a", "b")
        for n in (0, 1)
    }
    assert len(draws) == 16
    assert generator(0, "x").integers(2**62) == generator(0, "x").integers(2**62)


def test_a_derangement_uses_all_and_keeps_none() -> None:
    for count in (2, 3, 12, 363):
        order = derangement(0, count)
        assert sorted(order) == list(range(count)) and (order != np.arange(count)).all()
    with pytest.raises(ValueError, match="at least 2"):
        derangement(0, 1)
