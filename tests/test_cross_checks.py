"""Other tools on the same files with the same extractor give our numbers, end to end."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from bench.content import sha256_file
from bench.judges import Judge, JudgeCard, load_judge, vision
from bench.judges.clip import EMOJI_CLIP
from bench.metrics import TOOLS, check_tools, tool_values
from bench.metrics.paired import clip_score
from bench.scoring import compare
from bench.types import BenchError
from cli import app

N = 40


class Exact(Judge):
    """A random linear map of pixels in float64, so that rounding does not hide a difference."""

    def __init__(self) -> None:
        card = JudgeCard(name="linear", digest="0" * 64, resize="none")
        super().__init__(card, images=lambda batch: torch.from_numpy(self.features(batch)), side=8)
        self._map = np.random.default_rng(0).normal(size=(8 * 8 * 3, 12)) / 100

    def features(self, images: np.ndarray, **_: object) -> np.ndarray:
        return images.reshape(len(images), -1).astype(np.float64) @ self._map


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("tools")
    rng = np.random.default_rng(1)
    for name, top in (("a", 256), ("b", 200)):
        (root / name).mkdir()
        for i in range(N):
            image = rng.integers(0, top, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(image).save(root / name / f"{name}{i:02d}.png")
    return root / "a", root / "b"


def numbers_of(folders: tuple[Path, Path], judge: Judge) -> dict[str, float | None]:
    found = compare(*folders, judges={"features": judge}, batch=7, intervals=False, also=list(TOOLS))
    for tool, values in found.also.items():
        assert isinstance(values, dict), values
        for name, value in values.items():
            assert found.metrics[name].value == pytest.approx(value, rel=1e-6), tool
    return {name: metric.value for name, metric in found.metrics.items()}


def test_end_to_end_torch_fidelity_agrees(folders: tuple[Path, Path]) -> None:
    """It decodes itself. Subsets of all N images, so that KID has no randomness in any of the three."""
    from torch_fidelity import calculate_metrics
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    judge = Exact()

    class Extractor(FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], **_: object) -> None:
            super().__init__(name, features_list)

        get_provided_features_list = staticmethod(lambda: ("features",))
        get_default_feature_layer_for_metric = staticmethod(lambda metric: "features")
        can_be_compiled = staticmethod(lambda: False)

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
            return (torch.from_numpy(judge.features(images.permute(0, 2, 3, 1).numpy())),)

    FEATURE_EXTRACTORS_REGISTRY["exact"] = Extractor
    theirs = calculate_metrics(
        input1=str(folders[0]),
        input2=str(folders[1]),
        fid=True,
        kid=True,
        feature_extractor="exact",
        batch_size=16,
        cuda=False,
        cache=False,
        verbose=False,
        kid_subset_size=N,
        save_cpu_ram=True,  # no worker processes
    )
    ours = numbers_of(folders, judge)
    assert ours["fd"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)


def test_clean_fids_own_entry_agrees(folders: tuple[Path, Path]) -> None:
    from cleanfid import fid

    judge = Exact()

    def model(images: torch.Tensor) -> torch.Tensor:
        pixels = images.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return torch.from_numpy(judge.features(pixels))

    theirs = fid.compute_fid(
        *map(str, folders),
        custom_feat_extractor=model,
        custom_fn_resize=lambda image: image,
        num_workers=0,
        batch_size=16,
        device=torch.device("cpu"),
        verbose=False,
    )
    assert numbers_of(folders, judge)["fd"] == pytest.approx(theirs, rel=1e-6)


def test_clip_score_equals_open_clip_called_directly() -> None:
    import open_clip
    from tokenizers import Tokenizer

    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    captions = ["red heart", "old key", "woman walking"]
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{EMOJI_CLIP}")
    tokenizer = Tokenizer.from_file(str(EMOJI_CLIP / "tokenizer.json"))
    tokens = torch.tensor([tokenizer.encode(caption).ids for caption in captions])
    with torch.inference_mode():
        pictures = torch.stack([transform(Image.fromarray(image)) for image in images])
        seen = model.eval().encode_image(pictures, normalize=True)
        theirs = (seen * model.encode_text(tokens, normalize=True)).sum(1).numpy()
    judge = load_judge("emoji-clip")
    ours = clip_score(judge.features(images), judge.text(captions))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


TINY = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def test_the_clip_score_of_a_folder_is_open_clips_own_with_all_that_its_tag_says(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tag's weights want another mean and resize than the model's default: a file does not say so."""
    import open_clip
    from open_clip.pretrained import _PRETRAINED
    from safetensors.torch import save_file

    (tmp_path / "tiny-quickgelu.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(tmp_path / "tiny-quickgelu.json")
    torch.manual_seed(0)
    weights = tmp_path / "weights.safetensors"
    save_file(open_clip.create_model("tiny-quickgelu").state_dict(), weights)
    tag = {"file": str(weights), "quick_gelu": True, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    tag |= {"interpolation": "bicubic", "resize_mode": "squash"}
    monkeypatch.setitem(_PRETRAINED, "tiny-quickgelu", {"web": tag})
    names = sorted(path.name for path in folders[0].iterdir())
    captions = {name: f"picture number {place}" for place, name in enumerate(names)}
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    words = ["compare", *map(str, folders), "--no-intervals", "--json", "--device", "cpu"]
    words += ["--clip", "open-clip/tiny-quickgelu/web", "--clip-weights", str(weights)]
    told = CliRunner().invoke(app, [*words, "--captions", str(tmp_path / "captions.json")])
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)["metrics"]["clip"]
    model, _, transform = open_clip.create_model_and_transforms("tiny-quickgelu", pretrained="web")
    pictures = torch.stack([transform(Image.open(folders[0] / name)) for name in names])
    with torch.inference_mode():
        seen = model.eval().encode_image(pictures, normalize=True)
        read = model.encode_text(open_clip.tokenize(list(captions.values())), normalize=True)
    assert found["value"] == pytest.approx(float((seen * read).sum(1).mean()), abs=1e-6)
    assert found["judge"].startswith("tiny-quickgelu/web ") and "tiny-quickgelu/web" in told.stdout


def test_clean_fids_own_features_agree(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its resize, normalisation and network, from one weight file; of large and small pictures."""
    from cleanfid import fid, inception_pytorch
    from cleanfid.inception_torchscript import InceptionV3W
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    class Scripted(torch.nn.Module):
        """NVIDIA's file as clean-fid reads it: the layers alone, from weights in pytorch-fid's form."""

        def __init__(self, layers: torch.nn.Module) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x)

    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(theirs, "load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(theirs.FeatureExtractorInceptionV3, "load_state_dict", lambda *a: None)
        state = theirs.FeatureExtractorInceptionV3("untrained", ["2048"]).state_dict()
    torch.save(state, tmp_path / "inception-v3.pth")
    monkeypatch.setattr(inception_pytorch, "load_state_dict_from_url", lambda *a, **k: state)
    blocks = inception_pytorch.InceptionV3(resize_input=False).eval().blocks
    layers = torch.nn.Sequential(*(layer for block in blocks for layer in block))
    torch.jit.trace(Scripted(layers), torch.zeros(1, 3, 299, 299)).save(tmp_path / "inception-2015-12-05.pt")
    network = InceptionV3W(str(tmp_path), download=False)
    source = dataclasses.replace(vision.INCEPTION, sha256=sha256_file(tmp_path / "inception-v3.pth"))
    monkeypatch.setattr(vision.Inception, "published", source)
    judge = load_judge("inception-v3/clean", weights=tmp_path / "inception-v3.pth")
    pictures = np.random.default_rng(0).integers(0, 256, (4, 300, 300, 3), dtype=np.uint8)
    for place, picture in enumerate(pictures):
        (tmp_path / "large").mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "large" / f"{place}.png")
    for folder in (tmp_path / "large", folders[0]):
        images = np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())[:4]])
        paths = [str(path) for path in sorted(folder.iterdir())[:4]]
        wanted = fid.get_files_features(
            paths, model=network, num_workers=0, device=torch.device("cpu"), mode="clean", verbose=False
        )
        found = judge.features(images)
        assert found.shape == (4, 2048) and wanted.std(0).max() > 0
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6 * np.abs(wanted).max())
    plain = load_judge("inception-v3", weights=tmp_path / "inception-v3.pth").features(images)
    assert np.abs(plain - found).max() > 1e-3 * np.abs(found).max(), "another resize, other features"


def test_a_tool_that_failed_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> tuple[float, float]:
        raise OSError("\udcff")

    monkeypatch.setitem(TOOLS, "broken", broken)
    assert tool_values("broken", np.ones((9, 3)), np.ones((9, 3))) == "failed: OSError: \\udcff"


def test_the_command_asks_other_tools(folders: tuple[Path, Path], tmp_path: Path) -> None:
    for name, folder in zip("ab", folders, strict=True):
        (tmp_path / name).mkdir()
        for path in sorted(folder.iterdir())[:20]:
            (tmp_path / name / path.name).write_bytes(path.read_bytes())
    words = ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--judge", "emoji-clip", "--device", "cpu"]
    words += ["--no-intervals", "--also", "torch-fidelity,clean-fid"]
    told = CliRunner().invoke(app, [*words, "--json"])
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    for tool in ("torch-fidelity", "clean-fid"):
        assert found["also"][tool]["fd"] == pytest.approx(found["metrics"]["fd"]["value"], rel=1e-3), tool
    with pytest.raises(BenchError, match="Did you mean 'clean-fid'"):
        check_tools(["torch-fidelity", "clean-fit"])
