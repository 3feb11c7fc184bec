"""Metrics that ask a detector of sample and target: with weights of their own form, random and small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from bench import registry
from bench.config import RunConfig
from bench.content import sha256_file
from bench.data.coco import Recipe
from bench.data.coco.draw import canny_lines, redrawer
from bench.judges import detect, load_judge, vision
from bench.metrics import redetect
from bench.metrics.paired import cosine_to_target
from bench.reporting.words import _SPECS, Column
from bench.scoring import metric_value
from bench.tasks import find_lines
from bench.types import BenchError, Example, Scored
from tests.asking import made

SIZE = 64
NETWORKED = sorted(set(registry.rows("metric")) - {"canny_f1"})


def picture(number: int) -> np.ndarray:
    rough = np.random.default_rng(number).normal(size=(SIZE, SIZE, 3))
    smooth = ndimage.gaussian_filter(rough, (4, 4, 0))
    return np.uint8(255 * (smooth - smooth.min()) / np.ptp(smooth))


PICTURES = np.stack([picture(number) for number in range(4)])


def scored(images: np.ndarray, **more: Any) -> Scored:
    targets = PICTURES[: len(images)]
    examples = [Example(id=str(k), caption="", image=t, photo=True, **more) for k, t in enumerate(targets)]
    features = np.zeros((len(images), 1))
    return Scored(
        images=images, targets=targets, examples=examples, features=features, target_features=features
    )


@pytest.fixture(autouse=True)
def judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_JUDGES", str(tmp_path))
    return tmp_path


def test_every_row_has_its_title_in_tables_and_says_at_once_what_it_needs() -> None:
    assert set(registry.rows("metric")) == set(redetect.REDETECTED) <= set(_SPECS)
    for name in NETWORKED:
        with pytest.raises(BenchError, match=r"needs a .*(bench judges fetch|hf download)"):
            registry.load("metric", name)


def check(metric: Any, *, equal: float, **more: Any) -> np.ndarray:
    """Equal pictures have the best number, others worse, whatever stands beside them."""
    same, other = metric.items(scored(PICTURES, **more)), metric.items(scored(PICTURES[::-1], **more))
    np.testing.assert_allclose(same, equal, atol=1e-4)
    assert np.isfinite(other).all() and np.abs(other - equal).min() > 1e-6
    alone = metric.items(scored(PICTURES[::-1][:1], **more))
    np.testing.assert_allclose(alone, other[:1], rtol=1e-4, atol=1e-6)
    return other


def test_cannys_edges_need_nothing() -> None:
    found = check(registry.load("metric", "canny_f1"), equal=1)
    assert found.max() < 0.9


def test_edges_of_a_learned_detector_are_found_once_for_both_numbers(
    judges: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def sketcher(recipe: Recipe, *, weights: Path, device: str) -> Any:
        assert (recipe.sketch, recipe.soft, weights) == ("hed", True, judges)
        return lambda image: drawn.append(1) or np.uint8(ndimage.gaussian_filter(canny_lines(image), 1.0) * 2)

    monkeypatch.setattr(detect, "load_sketcher", sketcher)
    (judges / "ControlNetHED.pth").write_bytes(b"weights")
    f1, ssim = (registry.load("metric", name) for name in ("hed_f1", "hed_ssim"))
    check(f1, equal=1)
    count = len(drawn)
    check(ssim, equal=1)
    assert len(drawn) == count == 2 * 8
    assert f1.spec.judge == f"hed {sha256_file(judges / 'ControlNetHED.pth')[:8]}"
    value = metric_value(f1.spec, 0.5, n=4, judges={})
    assert value.judge == f1.spec.judge and Column.of("hed_f1", value).named == f"HED F1 ({value.judge})"


def write_detector(name: str, judges: Path) -> None:
    """Write random weights as those of HED or PiDiNet are published; skips without controlnet-aux."""
    torch.manual_seed(0)
    if name == "hed":
        module = pytest.importorskip("controlnet_aux.hed")
        torch.save(module.ControlNetHED_Apache2().state_dict(), judges / "ControlNetHED.pth")
    else:
        module = pytest.importorskip("controlnet_aux.pidi.model")
        state = {f"module.{k}": v for k, v in module.pidinet().state_dict().items()}
        torch.save({"state_dict": state}, judges / "table5_pidinet.pth")


@pytest.mark.parametrize("name", ["hed", "pidinet"])
def test_the_real_detectors_load_from_the_folder_of_judges(judges: Path, name: str) -> None:
    write_detector(name, judges)
    check(registry.load("metric", f"{name}_ssim"), equal=1)


def test_lines_are_drawn_again_by_the_very_weights_that_drew_them(
    judges: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, path = Recipe(size=64, sketch="pidinet"), judges / "table5_pidinet.pth"
    assert redrawer(recipe, {"sketch": "pidinet"}) is None
    path.write_bytes(b"weights")
    assert redrawer(recipe, {"sketch": f"pidinet (SHA-256 {'0' * 64}), soft"}) is None
    redraw = redrawer(recipe, {"sketch": f"pidinet (SHA-256 {sha256_file(path)}), soft"})
    monkeypatch.setattr("bench.data.coco.draw.load_sketcher", lambda *a, **k: lambda image: image[..., 0])
    example = Example(id="a", caption="", image=PICTURES[0], photo=True, redraw=redraw)
    found = find_lines(PICTURES[1], example)
    assert found is not None and (found == (PICTURES[1][..., 0] > 127)).all()
    assert redrawer(Recipe(size=64, sketch="canny"), {}) is canny_lines
    assert redrawer(Recipe(size=64, sketch="canny", tasks=("layout",)), {}) is None


def saved(folder: Path, network: Any, processor: Any) -> None:
    network.save_pretrained(folder)
    processor.save_pretrained(folder)


def test_depth_is_that_of_a_folder_of_transformers(judges: Path) -> None:
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    torch.manual_seed(0)
    config = DPTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[16, 16, 32, 32],
        fusion_hidden_size=16,
    )
    size = {"height": 32, "width": 32}
    saved(judges / "depth", DPTForDepthEstimation(config), DPTImageProcessor(size=size))
    metric = registry.load("metric", "depth_rmse")
    check(metric, equal=0)
    assert metric.spec.judge.startswith("dpt ")


NAMES = ("void", "Sky", "grass", "person", "boat")


@pytest.fixture
def segmenter(judges: Path) -> None:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    torch.manual_seed(0)
    config = SegformerConfig(
        num_encoder_blocks=4,
        depths=[1] * 4,
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1] * 4,
        decoder_hidden_size=8,
        id2label={0: "person", 1: "sky", 2: "lamp", 3: "grass"},
    )
    network = SegformerForSemanticSegmentation(config)
    torch.nn.init.normal_(network.decode_head.classifier.weight)
    saved(judges / "segmenter", network, SegformerImageProcessor(size={"height": 64, "width": 64}))


@pytest.mark.usefixtures("segmenter")
def test_classes_are_compared_as_seen_and_as_annotated(judges: Path) -> None:
    (judges / "depth").symlink_to(judges / "segmenter")
    with pytest.raises(BenchError, match="something else"):
        registry.load("metric", "depth_rmse")
    check(registry.load("metric", "miou_seen"), equal=1)
    metric = registry.load("metric", "miou_annotated")
    seen = metric.classes(PICTURES[0])
    assert seen.shape == (SIZE, SIZE) and len(np.unique(seen)) > 1
    annotated = np.array([3, 1, 0, 2], np.uint8)[seen]  # what it sees, by the data's numbers; lamps unknown
    layers = {"classes": annotated}
    assert metric.items(scored(PICTURES[:1], layers=layers, class_names=NAMES)) == pytest.approx(1)
    half = annotated.copy()
    half[: SIZE // 2] = 4  # boats, which the network does not know, are void
    assert metric.items(scored(PICTURES[:1], layers={"classes": half}, class_names=NAMES)) == pytest.approx(1)
    shifted = {"classes": np.where(annotated == 1, 2, annotated)}
    assert metric.items(scored(PICTURES[:1], layers=shifted, class_names=NAMES))[0] < 1
    nothing = {"classes": np.full_like(annotated, 4)}
    assert np.isnan(metric.items(scored(PICTURES[:1], layers=nothing, class_names=NAMES))).all()
    assert np.isnan(metric.items(scored(PICTURES[:1]))).all(), "nobody annotated it"


def test_lpips_is_that_of_torch_fidelity(judges: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_fidelity import sample_similarity_lpips as theirs
    from torchvision.models import vgg16

    torch.manual_seed(0)
    base = vgg16()
    sides = (64, 128, 256, 512, 512)
    heads = {f"lin{k}.model.1.weight": torch.rand(1, side, 1, 1) for k, side in enumerate(sides)}
    torch.save(base.state_dict(), judges / "vgg16.pth")
    torch.save(heads, judges / "lpips.pth")
    monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *a, **k: heads)
    monkeypatch.setattr(theirs, "torchvision_load_pretrained_vgg16", lambda: base)
    network = theirs.SampleSimilarityLPIPS("lpips")
    found = check(registry.load("metric", "lpips"), equal=0)
    pairs = (torch.from_numpy(x).permute(0, 3, 1, 2) for x in (PICTURES[::-1].copy(), PICTURES))
    np.testing.assert_allclose(found, network(*pairs).numpy(), rtol=1e-4)


def test_dino_is_the_cosine_of_its_features(judges: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm
    from safetensors.torch import save_file

    monkeypatch.setitem(vision.DINOV2_OPTIONS, "depth", 1)
    network = timm.create_model(vision.DINOV2_MODEL, **vision.DINOV2_OPTIONS)
    save_file(network.state_dict(), judges / "dinov2-vitb14.safetensors")
    found, judge = registry.load("metric", "dino").items(scored(PICTURES[::-1])), load_judge("dinov2-vitb14")
    wanted = cosine_to_target(judge.features(PICTURES[::-1]), judge.features(PICTURES))
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_run_takes_a_metric_by_name_where_it_runs(micro_folder: Path, tmp_path: Path) -> None:
    asked = RunConfig(
        suite="micro", base=micro_folder, results=tmp_path, device="cpu", metrics=("canny_f1",), limit=10
    )
    run = made(asked, method="text-only")
    assert [metric.device for metric in run.metrics] == ["cpu"]
    record = run.all()
    found = record.rows["real training images"]["canny_f1"]
    assert found.value is not None and 0 < found.value < 1 and found.n == 10
    assert set(record.rows) == {"samples", "autoencoder", "real training images"}
    assert all("canny_f1" in row for row in record.rows.values())
