"""Folders of a user's own images: what is read, what is refused, and what `bench compare A B` says."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from bench.cli.compare import comparison_text
from bench.data.folder import judged, manifest_of, read_folders
from bench.judges import Judge, JudgeCard, load_judge
from bench.metrics.paired import cosine_to_target, pixel_error
from bench.scoring import FLOOR, Comparison, compare, save_statistics
from bench.types import BenchError
from cli import app
from tests.distances import frechet_distance, kernel_distance


def pooling(name: str = "pooling") -> Judge:
    """A judge small enough for a test: mean colours of a grid of 3 x 3 cells, 27 features."""
    import torch

    def images(batch: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy(np.ascontiguousarray(batch)).permute(0, 3, 1, 2).float()
        return torch.nn.functional.adaptive_avg_pool2d(x / 255, 3).flatten(1)

    return Judge(JudgeCard(name=name, digest="0" * 64, resize="none"), images=images, side=24)


def draw(seed: int, n: int, *, size: tuple[int, int] = (12, 16), shift: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (n, 3, 4, 3)).repeat(size[0] // 3, 1).repeat(size[1] // 4, 2)
    return (coarse + rng.integers(0, 50, coarse.shape) + shift).clip(0, 255).astype(np.uint8)


def save(folder: Path, images: np.ndarray, *, stem: str = "x") -> Path:
    folder.mkdir(exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{stem}{i:03d}.png")
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return save(tmp_path / "a", draw(0, 24)), save(tmp_path / "b", draw(1, 30, shift=20), stem="y")


def compared(a: Path, b: Path, *, features: Judge, clip: Judge | None = None, **more: Any) -> Comparison:
    return compare(a, b, judges={"features": features} | ({"clip": clip} if clip else {}), **more)


def bench(*args: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in args])


def test_a_manifest_is_sorted_and_sweeps_nothing_in(folders: tuple[Path, Path]) -> None:
    a, _ = folders
    (a / "notes.txt").write_text("prompt")
    (a / "x000.json").write_text("{}")
    (a / ".x999.png").write_bytes(b"")
    save(a / "grid", draw(5, 1))
    Image.fromarray(draw(6, 1)[0]).save(a / "W.JPG")
    found = manifest_of(a)
    assert [p.name for p in found.files] == ["W.JPG", *(f"x{i:03d}.png" for i in range(24))]
    assert found.skipped == {".json": 1, ".txt": 1, "hidden": 1, "subfolder": 1}


def test_sizes_may_differ_and_batches_do_not_matter(tmp_path: Path) -> None:
    mixed = [*draw(0, 13), *draw(1, 11, size=(24, 8))]
    order = np.random.default_rng(0).permutation(24)
    images = [mixed[i] for i in order]
    folder, other = tmp_path / "a", save(tmp_path / "b", draw(2, 21))
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03d}.png")
    judge, seen = pooling(), []
    manifests = manifest_of(folder), manifest_of(other)
    a, b, errors = read_folders(
        *manifests, judges={"features": judge}, batch=5, tick=lambda done, of: seen.append((done, of))
    )
    expected = np.concatenate([judge.features(image[None]) for image in images])
    np.testing.assert_allclose(a.features("features"), expected, atol=1e-6)
    np.testing.assert_allclose(judged(judge, images, batch=64), expected, atol=1e-6)
    assert a.sizes == {(12, 16): 13, (24, 8): 11} and errors is None
    assert seen[-1] == (45, 45) and len(b.digests) == 21


def test_values_are_the_metrics_of_the_features(folders: tuple[Path, Path]) -> None:
    a, b = folders
    judge = pooling()
    found = compared(a, b, features=judge, batch=7)
    x, y = judge.features(draw(0, 24)), judge.features(draw(1, 30, shift=20))
    assert found.metrics["fd"].value == pytest.approx(frechet_distance(x, y), rel=1e-8)
    assert found.metrics["kid"].value == pytest.approx(kernel_distance(x, y), rel=1e-8)
    for name in ("fd", "kid", "fd_infinite", "precision", "recall", "density", "coverage"):
        metric = found.metrics[name]
        assert metric.low is not None and metric.high is not None and metric.value is not None
        assert metric.low <= metric.value <= metric.high, name
    for name in ("cmmd", "cosine", "retrieval", "mae"):
        assert found.metrics[name].value is None and found.reasons[name]
    assert [f["n"] for f in found.folders] == [24, 30]
    assert "fewer than 2,048" in found.warnings[0]
    plain = compared(a, b, features=judge, intervals=False).metrics
    assert {n: m.value for n, m in plain.items()} == pytest.approx(
        {n: m.value for n, m in found.metrics.items()}
    )
    assert all(m.low is None for m in plain.values())


def test_names_move_no_distance_and_no_interval_stays_that_was_not_asked_for(tmp_path: Path) -> None:
    images = draw(0, 48)
    like = (images // 9 * 9).astype(np.uint8)
    a, b, other = save(tmp_path / "a", like), save(tmp_path / "b", images), tmp_path / "other"
    other.mkdir()
    for place, path in zip(np.random.default_rng(1).permutation(48), sorted(a.iterdir()), strict=True):
        (other / f"z{place:03d}.png").write_bytes(path.read_bytes())
    paired, apart = (compared(x, b, features=pooling(), intervals=False) for x in (a, other))
    for name in ("fd", "kid", "fd_infinite", "precision", "recall", "density", "coverage"):
        assert paired.metrics[name].value == pytest.approx(apart.metrics[name].value, rel=1e-3), name
    assert paired.metrics["mae"].value is not None and "fd_infinite" in paired.reasons
    assert all(m.low is None and m.high is None for m in paired.metrics.values())
    same = compared(b, b, features=pooling(), intervals=False).metrics["fd_infinite"].value
    assert same == pytest.approx(0, abs=1e-6)


def test_what_is_dropped_and_what_is_lossy_goes_by_content(tmp_path: Path) -> None:
    images = draw(0, 24, size=(12, 12))
    clean = save(tmp_path / "clean", images)
    turned = Image.Exif()
    turned[0x0112] = 6
    half = np.concatenate([images[0], np.zeros_like(images[0][..., :1])], axis=-1)
    options: dict[str, dict[str, Any]] = {
        "transparency": {},
        "EXIF rotation": {"exif": turned},
        "further frames": {"save_all": True, "append_images": [Image.fromarray(images[1])]},
        "only one folder holds lossy files": {"format": "JPEG"},
    }
    for said, how in options.items():
        folder = save(tmp_path / said, images)
        for name in ("x003.png", "x005.png"):
            Image.fromarray(half if said == "transparency" else images[0]).save(folder / name, **how)
        told = [w for w in compared(folder, clean, features=pooling(), intervals=False).warnings if said in w]
        assert len(told) == 1 and ("2 files of A and 0 of B" in told[0] or "format" in how), said
    named = save(tmp_path / "named", images)
    for path in list(named.iterdir()):
        path.rename(path.with_suffix(".jpg"))
    found = compared(named, clean, features=pooling(), intervals=False)
    assert not any("lossy" in warning for warning in found.warnings)


def test_names_that_are_no_utf8_are_scored(tmp_path: Path) -> None:
    a, b = save(tmp_path / os.fsdecode(b"\xe4"), draw(0, 24)), save(tmp_path / "b", draw(1, 24))
    for name in ("x003.png", "x005.png"):
        os.rename(a / name, os.fsencode(a / "x") + b"\xe4" + name.encode())
    (a / os.fsdecode(b"x.\xff")).write_bytes(b"")
    found = compared(a, b, features=pooling(), intervals=False)
    assert "24 images" in comparison_text(found).encode().decode()
    assert found.folders[0]["n"] == 24 and len(found.folders[0]["digest"]) == 64
    (a / "x007.png").write_bytes(b"")
    with pytest.raises(BenchError, match=r"x007\.png \(it is empty\)"):
        compared(a, b, features=pooling())


def test_equal_stems_give_the_paired_metrics(tmp_path: Path) -> None:
    images, others = draw(0, 24), draw(0, 24, shift=9)
    a, b = save(tmp_path / "a", images), save(tmp_path / "b", others)
    judge = pooling()
    found = compared(a, b, features=judge, clip=pooling("clip"), batch=9).metrics
    x, y = judge.features(images), judge.features(others)
    assert found["cosine"].value == pytest.approx(cosine_to_target(x, y).mean())
    assert found["mae"].value == pytest.approx(pixel_error(images, others).mean())
    assert found["retrieval"].value == 1.0
    assert found["cmmd"].value is not None and found["cmmd"].judge == "clip"
    Image.fromarray(images[3, :6]).save(b / "x003.png")
    mixed = compared(a, b, features=judge, batch=9)
    assert mixed.metrics["mae"].value is None and "sizes" in mixed.reasons["mae"]
    assert mixed.metrics["cosine"].value is not None
    assert any("sizes differ" in w for w in mixed.warnings)


def test_sensitivity_moves_what_was_changed_alone(folders: tuple[Path, Path]) -> None:
    a, b = folders
    judge = pooling()
    found = compared(a, b, features=judge, sensitivity=True, intervals=False)
    assert set(found.sensitivity) == {"resizer", "jpeg95", "half"}
    before = found.metrics["fd"].value
    for change, values in found.sensitivity.items():
        assert set(values) == set(found.metrics) and values["cmmd"] is None and values["mae"] is None
        assert values["fd"] is not None and values["fd"] != before, change
    kept = np.sort(np.random.default_rng(0).permutation(24)[:12])
    others = np.sort(np.random.default_rng(0).permutation(30)[:15])
    half = frechet_distance(judge.features(draw(0, 24)[kept]), judge.features(draw(1, 30, shift=20)[others]))
    assert found.sensitivity["half"]["fd"] == pytest.approx(half, rel=1e-8)


def test_shared_files_and_lossy_files_are_warned_of(folders: tuple[Path, Path]) -> None:
    a, b = folders
    (b / "copy.png").write_bytes((a / "x000.png").read_bytes())
    Image.fromarray(draw(9, 1)[0]).save(b / "lossy.jpg")
    said = " ".join(compared(a, b, features=pooling(), intervals=False).warnings)
    assert "1 files are in both folders" in said and "lossy" in said


def test_bad_folders_are_refused_in_words(folders: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = folders
    judge = pooling()
    with pytest.raises(BenchError, match="there is no folder .*nowhere"):
        compared(a, tmp_path / "nowhere", features=judge)
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "notes.txt").write_text("x")
    with pytest.raises(BenchError, match=r"holds no image \(1 \.txt\)"):
        compared(texts, b, features=judge)
    with pytest.raises(BenchError, match=rf"holds 1 image.*at least {FLOOR}"):
        compared(save(tmp_path / "one", draw(0, 1)), b, features=judge)
    (a / "x003.png").write_bytes((a / "x003.png").read_bytes()[:60])
    (a / "x021.png").write_bytes(b"no image at all")
    for name in ("x022.png", "x023.png"):
        (a / name).unlink()
        (a / name).symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(BenchError, match=r"4 of 24 images in .* x003\.png.*x021\.png.*x023\.png") as told:
        compared(a, b, features=judge, batch=4)
    assert "Errno" not in str(told.value) and "object at" not in str(told.value)


def test_the_command_scores_folders_with_a_text_file_among_them(folders: tuple[Path, Path]) -> None:
    a, b = folders
    (a / "notes.txt").write_text("prompt")
    told = bench("compare", a, b, "--judge", "emoji-clip", "--device", "cpu")
    assert told.exit_code == 0, told.output
    assert "FD (emoji-clip) ↓" in told.output and "24 images of 16x12; skipped: 1 .txt" in told.output
    assert "no CLIP judge given" in told.output and "–" in told.output and "warning" in told.output


def test_the_command_speaks_json_and_names_its_errors(folders: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = folders
    told = bench("compare", a, b, "--judge", "emoji-clip", "--json", "--no-intervals", "--sensitivity")
    found = json.loads(told.stdout)
    assert found["metrics"]["cmmd"]["value"] is None and found["metrics"]["fd"]["value"] > 0
    assert found["folders"][0]["n"] == 24 and set(found["sensitivity"]) == set(found["changes"])
    for words, said in (
        ((a,), "Missing argument 'reference'"),
        ((a, tmp_path / "nowhere"), "there is no folder"),
        ((a, b, "--judge", "emoji-klip"), "Did you mean 'emoji-clip'"),
        ((a, b, "--judge", "dinov2-vitb14"), "dinov2_vitb14_pretrain.pth"),
        ((a, b, "--clip", "efficientnet-lite0"), "no CLIP judge"),
        ((a, b, "--clip-weights", "x"), "needs --clip"),
        ((a, b, "--also", "clean-fit"), "Did you mean 'clean-fid'"),
        ((a, b, "--method", "bps"), "--method"),
        (("--sensitivity",), "Missing argument 'generated'"),
    ):
        told = bench("compare", *words)
        assert told.exit_code == 2 and said in told.output, (words, told.output)
        assert "Traceback" not in told.output


def test_statistics_and_reference_batches_stand_for_their_pictures(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """mu and sigma as pytorch-fid, clean-fid and EDM write them; arr_0 as ADM's reference batches."""
    a, b = folders
    judge, expected = pooling(), compared(a, b, features=pooling(), intervals=False).metrics
    features = judge.features(draw(1, 30, shift=20)).astype(np.float64)
    np.savez(tmp_path / "stats.npz", mu=features.mean(axis=0), sigma=np.cov(features, rowvar=False))
    save_statistics(b, tmp_path / "ours.npz", judge=judge, batch=7)
    for stats in (tmp_path / "stats.npz", tmp_path / "ours.npz"):
        for pair in ((a, stats), (stats, a)):
            found = compared(*pair, features=judge).metrics
            assert found["fd"].value == pytest.approx(expected["fd"].value, rel=1e-9)
            assert found["kid"].value is None
    np.savez(tmp_path / "batch.npz", arr_0=draw(1, 30, shift=20))
    found = compared(a, tmp_path / "batch.npz", features=judge, intervals=False)
    for name in ("fd", "kid"):
        assert found.metrics[name].value == pytest.approx(expected[name].value, rel=1e-9)
    assert found.folders[1]["folder"] == str(tmp_path / "batch.npz")


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({"mu": np.zeros(5), "sigma": np.eye(5)}, "--judge"),
        ({"mu": np.zeros(27)}, "sigma"),
        ({"mu": np.zeros(27), "sigma": np.eye(26)}, "sigma"),
        ({"mu": np.full(27, np.nan), "sigma": np.eye(27)}, "finite"),
        ({"arr_0": np.zeros((30, 12, 16), np.uint8)}, "arr_0"),
        ({"features": np.zeros(27)}, "features"),
    ],
)
def test_statistics_that_cannot_be_are_refused(
    folders: tuple[Path, Path], tmp_path: Path, arrays: dict[str, np.ndarray], named: str
) -> None:
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(BenchError, match=named) as refused:
        compared(folders[0], tmp_path / "s.npz", features=pooling())
    assert "\n" not in str(refused.value)


def test_the_command_scores_captions_and_saves_statistics(folders: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = folders
    captions = {path.name: f"red heart {number}" for number, path in enumerate(sorted(a.iterdir()))}
    (tmp_path / "c.json").write_text(json.dumps(captions))
    words = ("compare", a, b, "--judge", "emoji-clip", "--clip", "emoji-clip", "--no-intervals", "--json")
    told = bench(*words, "--captions", tmp_path / "c.json", "--save-stats", tmp_path / "b.npz")
    assert told.exit_code == 0, told.output
    clip = load_judge("emoji-clip")
    sides = clip.features(draw(0, 24)), clip.text(list(captions.values()))
    expected = float(cosine_to_target(*sides).mean())
    found = json.loads(told.stdout)["metrics"]
    assert found["clip"]["value"] == pytest.approx(expected, abs=1e-5)
    again = bench("compare", a, tmp_path / "b.npz", "--judge", "emoji-clip", "--json")
    assert json.loads(again.stdout)["metrics"]["fd"]["value"] == pytest.approx(found["fd"]["value"], rel=1e-6)
    batch, again = tmp_path / "batch.npz", tmp_path / "again.npz"
    np.savez(batch, arr_0=draw(1, 30, shift=20))
    for given in (batch, tmp_path / "b.npz"):  # statistics of a batch, and of statistics
        kept = bench("compare", a, given, "--judge", "emoji-clip", "--json", "--save-stats", again)
        assert kept.exit_code == 0, kept.output
        for name in ("mu", "sigma"):
            np.testing.assert_allclose(np.load(again)[name], np.load(tmp_path / "b.npz")[name], rtol=1e-6)


def test_what_cannot_be_compared_ends_in_one_line_with_nothing_written(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    a, b = folders
    captions = {path.name: f"red heart {number}" for number, path in enumerate(sorted(a.iterdir()))}
    kinds = {
        "more": {**captions, "no.png": "x"},
        "fewer": dict(list(captions.items())[1:]),
        "none": {},
        "all": captions,
    }
    for name, value in kinds.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    np.savez(tmp_path / "wide.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    before = sorted(tmp_path.rglob("*"))
    clip = ("--clip", "emoji-clip", "--captions")
    for words, named in (
        ((a, b, *clip, tmp_path / "more.json"), "captions name no image of"),
        ((a, b, *clip, tmp_path / "fewer.json"), "x000.png"),
        ((a, b, *clip, tmp_path / "none.json"), "24 images of"),
        ((tmp_path / "wide.npz", b, *clip, tmp_path / "all.json"), "wide.npz"),
        ((a, b, "--captions", tmp_path / "all.json"), "--clip"),
        ((a, tmp_path / "wide.npz"), "have width"),
        ((tmp_path / "wide.npz", b), "have width"),
    ):
        kept = ("--name", "theirs", "--results", tmp_path / "results", "--save-stats", tmp_path / "s.npz")
        told = bench("compare", *words, "--judge", "emoji-clip", "--no-intervals", *kept)
        (line,) = [line for line in told.stderr.splitlines() if "judging" not in line]
        assert told.exit_code == 2 and line.startswith("error: ") and named in line, told.output
        assert sorted(tmp_path.rglob("*")) == before and not told.stdout
