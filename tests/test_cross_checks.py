"""Other tools on the same files with the same extractor give our numbers, end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from bench.data.folder import manifest_of
from bench.judges import Judge, JudgeCard, load_judge
from bench.judges.clip import EMOJI_CLIP
from bench.metrics.paired import clip_score
from bench.metrics.tools import TOOLS, Files, check_tools, clean_fid, tool_values, torch_fidelity
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


def files_of(first: Path, second: Path) -> Files:
    return manifest_of(first).files, manifest_of(second).files


def test_end_to_end_torch_fidelity_and_clean_fid_agree(folders: tuple[Path, Path]) -> None:
    """Subsets of all N images, so that KID has no randomness in any of the three."""
    judge = Exact()
    ours = compare(*folders, features=judge, batch=7, intervals=False).metrics
    for tool in (torch_fidelity, clean_fid):
        theirs = tool(files_of(*folders), judge, 7)
        assert ours["fd"].value == pytest.approx(theirs["fd"], rel=1e-6), tool.__name__
        assert ours["kid"].value == pytest.approx(theirs["kid"], rel=1e-6), tool.__name__


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
    ours = compare(*folders, features=judge, intervals=False).metrics["fd"].value
    assert ours == pytest.approx(theirs, rel=1e-6)


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


def test_a_tool_that_failed_says_why_and_the_others_go_on(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> dict[str, float]:
        raise OSError("\udcff")

    monkeypatch.setitem(TOOLS, "broken", broken)  # type: ignore[arg-type]
    values = tool_values(["broken", "clean-fid"], files_of(*folders), judge=Exact(), batch=16)
    assert values["broken"] == "failed: OSError: \\udcff" and set(values["clean-fid"]) == {"fd", "kid"}


def test_the_command_asks_other_tools_and_says_what_they_cannot_take(
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
    assert told.exit_code == 0 and told.output.count("failed: ") == 2
    with pytest.raises(BenchError, match="Did you mean 'clean-fid'"):
        check_tools(["torch-fidelity", "clean-fit"])
