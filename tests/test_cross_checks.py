"""Other tools on the same files with the same extractor give our numbers, end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from bench.judges import Judge, JudgeCard, load_judge
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
