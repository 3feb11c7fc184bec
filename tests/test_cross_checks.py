"""Other tools on the same files with the same extractor give our numbers, end to end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from bench.judges import Judge, JudgeCard, load_judge
from bench.judges.clip import EMOJI_CLIP
from bench.metrics.paired import clip_score
from bench.scoring import compare
from bench.tools import TOOLS, clean_fid, find_tools, tool_values, torch_fidelity
from bench.types import BenchError
from cli import app

N = 40


class Exact(Judge):
    """A random linear map of pixels in float64, so that rounding does not hide a difference."""

    def __init__(self) -> None:
        self.card = JudgeCard(name="linear", digest="0" * 64, resize="none")
        self.side = 8
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


def test_end_to_end_torch_fidelity_and_clean_fid_agree(folders: tuple[Path, Path]) -> None:
    """Subsets of all N images, so that KID has no randomness in any of the three."""
    judge = Exact()
    ours = compare(*folders, features=judge, batch=7, intervals=False).metrics
    for tool in (torch_fidelity, clean_fid):
        theirs = tool(*folders, judge, 7)
        assert ours["fd"].value == pytest.approx(theirs["fd"], rel=1e-6), tool.__name__
        assert ours["kid"].value == pytest.approx(theirs["kid"], rel=1e-6), tool.__name__


def test_clean_fids_own_entry_agrees(folders: tuple[Path, Path]) -> None:
    import torch
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
    ours = compare(*folders, features=judge, intervals=False).metrics["fd"].value
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_clip_score_equals_open_clip_called_directly() -> None:
    import open_clip
    import torch
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


def test_a_tool_that_failed_says_why_and_the_others_go_on(folders: tuple[Path, Path], tmp_path: Path) -> None:
    whole = tool_values(TOOLS, *folders, judge=Exact(), batch=16)
    assert list(whole) == ["torch-fidelity", "clean-fid"]
    a, b = (Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in folders)
    (a / "._a00.png").write_bytes(b"left by a file manager")  # hidden: ours leaves it out
    found = tool_values(TOOLS, a, b, judge=Exact(), batch=16)
    failed = {name for name, values in found.items() if isinstance(values, str)}
    assert failed and all("failed: " in found[name] for name in failed)
    assert all(found[name] == whole[name] for name in set(found) - failed)


def test_the_command_asks_other_tools_and_refuses_what_they_cannot_take(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
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
    Image.new("RGB", (9, 9)).save(tmp_path / "a" / "large.png")
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 2 and "2 sizes" in told.stderr
    with pytest.raises(BenchError, match="Did you mean 'clean-fid'"):
        find_tools(["torch-fidelity", "clean-fit"])
