"""docs/reproduce.md followed by the letter: every block of commands, in a shell, in order.

On a small COCO, a narrow Stable Diffusion 1.5, judges and published networks, all of random weights and the
right shape. Paths and sizes alone are replaced.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.base.load import load_base
from bench.base.snapshot import MANIFEST
from bench.base.weights import Weights, shown
from bench.content import read_json
from bench.record import load_record
from tests import coco_fixture
from tests.bases import write_narrow_base
from tests.loading import TASK, moved
from tests.test_docs import ROOT, blocks
from tests.test_processes import free_port

PAGE = ROOT / "docs" / "reproduce.md"
CLIP, OWN = "open-clip/ViT-B-16-quickgelu/openai", "open-clip/ViT-S-32-alt/own"
SUITE = f"""
from dataclasses import replace

from bench.config import Budget, Sampler
from bench.judges import need_file, vision
from bench.suites import COCO17


class Inception(vision.Inception):
    def file(self, name, weights):
        return need_file("inception-v3", weights, vision.INCEPTION)


few = {{name: Budget(name=name, train_images=64, eval_items=None) for name in COCO17.budgets}}
SMALL = replace(COCO17, feature_judge="small:Inception", clip_judge="{OWN}", budgets=few)
SMALL = replace(SMALL, sampler=Sampler(name="ddim", steps=2, guidance=7.5), rates=("1e-5", "3e-5"))
"""
TRAINED = "results/coco17/coco17-sketch-bps-paper-s0-*"
INSTEAD = {
    "--suite coco17": "--suite small:SMALL",
    "data prepare coco17": "data prepare coco17 --size 128",
    "--device cuda": "--device cpu",
    "--precision fp16": "--precision bf16",  # which a CPU has not
    "num_processes 8": f"num_processes 2 --main_process_port {free_port()}",
    "--processes 8": "--processes 2",
    "--gpus 8 --gpu h100": "--base sd15 --data coco17-512 --gpus 8 --gpu h100",
    "--ray auto --gpus-per-run 1 --cpus-per-run 8": "--ray local --gpus-per-run 0 --cpus-per-run 1",
    "--method paper": "--method bps,text-only",
    "--seed 0,1,2": "--seed 0,1",
    "ablate leak": "ablate leak --seed 0",
    CLIP: OWN,
    CLIP.replace("/", "-"): OWN.replace("/", "-"),
    "--judge inception-v3": "--judge small:Inception",
    "results/coco17/RUN": TRAINED,
    "compare A B": f"compare {TRAINED}/work/samples {TRAINED.replace('bps', 'text-only')}/work/samples",
}
if importlib.util.find_spec("controlnet_aux") is None:
    INSTEAD["--sketch pidinet --detectors pidinet"] = "--sketch canny"
if importlib.util.find_spec("ray") is None:
    INSTEAD |= {"--ray local --gpus-per-run 0 --cpus-per-run 1": ""}
NOT_HERE = "git clone"  # of the block that installs the project


def asked(block: str) -> str:
    """A block of the page for the small COCO; of a list of files, a command that looks for each."""
    if block.startswith("coco/"):
        return "\n".join(f"ls -d {line.split('  ')[0]} > listed" for line in block.splitlines())
    for old, new in INSTEAD.items():
        block = block.replace(old, new)
    return block


@pytest.fixture(scope="module")
def brought(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page's reader brings, and the programs `bench` and `accelerate`."""
    folder = tmp_path_factory.mktemp("paper")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coco_fixture, "TRAIN", range(1, 261))
        patch.setattr(coco_fixture, "VAL", range(1001, 1033))
        coco_fixture.build_coco(folder / "coco")
    (folder / "small.py").write_text(SUITE)
    _write_bases(folder / "sd15")
    _write_judges(folder / "judges")
    _write_detector(folder / "pidinet")
    base = load_base(folder / "sd15")
    three = shown(TASK, Weights(path=Path(), channels="repeat"))
    for method, name, task in (
        ("controlnet", "control_v11p_sd15_softedge", three),
        ("t2i-adapter", "t2iadapter_sketch_sd15v2", TASK),
    ):
        _write_published(folder / name, method, base, task)
    (folder / "bin").mkdir()
    for program, words in (
        ("bench", f"-P {ROOT / 'cli.py'}"),
        ("accelerate", "-m accelerate.commands.accelerate_cli"),
    ):
        path = folder / "bin" / program
        path.write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        path.chmod(0o755)
    return folder


def _write_bases(folder: Path) -> None:
    """Write a base with two UNets, as SD 1.5 has them."""
    from safetensors.torch import load_file, save_file

    write_narrow_base(folder)
    (folder / MANIFEST).unlink()
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    other = {name: tensor * 1.01 for name, tensor in load_file(path).items()}
    save_file(other, path.with_name("diffusion_pytorch_model.non_ema.safetensors"))


def _write_judges(folder: Path) -> None:
    import open_clip
    from safetensors.torch import save_file
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    folder.mkdir()
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(theirs.FeatureExtractorInceptionV3, "load_state_dict", lambda *a: None)
        network = theirs.FeatureExtractorInceptionV3("untrained", ["2048"])
    torch.save(network.state_dict(), folder / "inception-v3.pth")
    model = open_clip.create_model(OWN.split("/")[1])
    state = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / f"{OWN.replace('/', '-')}.safetensors")


def _write_detector(folder: Path) -> None:
    folder.mkdir()
    if importlib.util.find_spec("controlnet_aux") is not None:
        from controlnet_aux.pidi.model import pidinet

        state = {f"module.{name}": tensor for name, tensor in pidinet().state_dict().items()}
        torch.save({"state_dict": state}, folder / "table5_pidinet.pth")


def _write_published(folder: Path, method: str, base: Any, task: Any) -> None:
    from bench import registry

    folder.mkdir()
    registry.load("method", method).save(moved(method, base, task=task), folder)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_page_is_followed_to_its_table(brought: Path) -> None:
    given = {
        "PATH": f"{brought / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "BPS_BENCH_CACHE": str(brought / "cache"),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    environment = {**os.environ, **given}
    environment.pop("BENCH_COCO17", None)
    exported = ""  # what a user's shell would keep
    for block in blocks(PAGE):
        if block.startswith(NOT_HERE):
            continue
        script = asked(block)
        done = subprocess.run(
            ["bash", "-euxc", exported + script], cwd=brought, env=environment, capture_output=True, text=True
        )
        print(script, done.stdout, sep="\n", flush=True)
        assert done.returncode == 0, f"{script}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
        exported += "".join(f"{line}\n" for line in script.splitlines() if line.startswith("export "))

    results = brought / "results"
    records = [load_record(path.parent) for path in results.rglob("record.json")]
    assert len(records) == 2 + 2 + 4 + 1 + 1 + 2  # rehearsal, rates, rows, leak, release, weights of others
    assert {record.protocol["training"]["precision"] for record in records} == {"bf16"}
    table = (results / "coco17/report/table-coco17-sketch.tex").read_text()
    assert "FID" in table and "CLIP" in table and "NOT TRAINED HERE" in table
    assert [r.leaked for r in records if r.leaked] == [32]
    (released,) = (load_record(p) for p in (results / "coco17-released").glob("coco17-*"))
    assert released.protocol["training"]["batch"] == 64 == released.config["train_batch"]
    exported_record = read_json(brought / "bps-sketch-sd15/record.json")
    assert exported_record["run_id"].startswith("coco17-sketch-bps-paper-s0-")
