"""The commands that README and docs show do run: on `micro`, offline, with less of everything.

docs/reproduce.md is followed by tests/test_reproduce.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bench.grid
from bench.base.snapshot import find_snapshot
from bench.data.leaks import write_seen
from tests import own_pictures
from tests.command_line import bench as command
from tests.test_docs import ROOT, SHOWN
from tests.test_grid import in_process
from tests.test_outside import toy_of_readme

INSTEAD = {
    "METHOD": "bps",
    "TASK": "sketch",
    "--method all,variants": "--method bps,text-only",
    "--method all": "--method bps,text-only",
    "--method paper": "--method bps,text-only",
    "--task all": "--task sketch",
    "--seed 0,1,2": "--seed 0",
    "--seeds 0,1,2": "--seed 0",
    "--draws 4": "--draws 2",
    "--train-images 25600": "",
    "--budget short": "--budget quick",
    "--budget equal-time": "--budget quick",
    "--random sd15 --method bps,text-only": "--random sd15 --width 32 --size 64 --method bps",
    "cost --method bps,text-only": "cost --method bps",
    "--width 64": "--width 32 --size 64",
    "--data DIR": "--data PICTURES",
    "--weights DIR": "--weights TRAINED",
    "base show FOLDER": "base show BASE",
    "MODEL": "BASE",
    "add record.json": "add theirs/record.json",
    "unpack results/emoji": f"unpack {ROOT}/results/emoji",
}
MICRO = {"--suite": "micro", "--base": "BASE"}
LITTLE = {**MICRO, "--device": "cpu", "--sample-batch": "12", "--train-images": "16", "--limit": "10"}
MORE = {  # options that a command has besides its own
    "run": {**LITTLE, "--sampling-steps": "1"},
    "ablate prior --results": {**MICRO, "--plan": ""},
    "ablate prior": {**LITTLE, "--seed": "0", "--task": "sketch"},
    "ablate": {**MICRO, "--plan": "", "--budget": "quick"},
    "tune --ablation schedule": {**LITTLE, "--sampling-steps": "1", "--rates": "1e-3"},
    "tune": {**LITTLE, "--sampling-steps": "1", "--rates": "1e-4,1e-3"},
    "cost": {**MICRO, "--device": "cpu", "--train-steps": "1", "--sample-batches": "1", "--rounds": "1"},
    "check": MICRO,
    "export": {"--base": "BASE"},
    "plan": {"--method": "text-only"},
}
OWN = {"--resolution": "64", "--train-batch": "8"}  # of the suite of one's own pictures
ELSEWHERE = {  # and why not here
    "fetch": "a network",
    "--push": "a network",
    "inception-v3": "weights of others",
    "score": "answers of people: tests/study",
    "encode": "tests/test_reproduce.py",
    "prepare": "tests/test_reproduce.py",
}
HERE = dict.fromkeys(
    tuple(words) for page, words in SHOWN if page != "reproduce.md" and not set(words) & set(ELSEWHERE)
)


@pytest.fixture(scope="module")
def place(micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what the commands name."""
    folder = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(bench.grid, "starter", lambda jobs, **how: in_process)
        patch.setattr("bench.cli.run.share", lambda *given: None)  # one process does
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "library")
        base = Path(shutil.copytree(micro_folder, folder / "BASE"))
        names, pictures = ["toy: red heart", "toy: face"], np.zeros((2, 64, 64, 3), np.uint8)
        seen: dict[str, Any] = {"names": names, "pictures": pictures, "facts": {"about": "toys"}}
        write_seen(base, base=find_snapshot(base).digest, **seen)
        own_pictures.write(folder / "PICTURES", count=80)
        (folder / "toy.py").write_text(toy_of_readme())
        (folder / "run.yaml").write_text("method: bps\n")
        for method in ("bps", "controlnet"):
            done(*smaller(["run", "--method", method, "--no-floor"], folder))
        run = first(folder / "results/runs", "controlnet")
        done("export", run, "TRAINED", "--base", "BASE")
        for name, side in (("A", "val"), ("B", "test")):
            done("data", "export", name, "--side", side, "--items", 24)
        captions = {path.name: "red heart" for path in (folder / "A").iterdir()}
        (folder / "captions.json").write_text(json.dumps(captions))
        done("compare", "A", "B", "--save-stats", "stats.npz")
        np.savez("batch.npz", arr_0=np.random.default_rng(0).integers(0, 255, (24, 64, 64, 3), np.uint8))
        shutil.copytree(run, "theirs")
        yield folder


def done(*asked: object) -> None:
    answer = command(*asked)
    diverged = asked[0] == "tune" and answer.exit_code == 1 and "FAILED" in answer.output  # a rate beyond
    assert answer.exit_code == 0 or diverged, f"{' '.join(map(str, asked))}\n{answer.output[-4000:]}"


def first(results: Path, method: str) -> Path:
    """The run of a method that was made first."""
    records = results.glob(f"micro-sketch-{method}-*/record.json")
    return min(records, key=lambda path: path.stat().st_mtime).parent


def smaller(words: Sequence[str], folder: Path) -> list[str]:
    """A command of the docs for `micro`."""
    text = " ".join(words)
    for old, new in INSTEAD.items():
        text = text.replace(old, new)
    if words[0] in ("export", "results", "data", "base"):  # into a folder that is not there yet
        new = f" new{len(list(folder.glob('new*')))}"
        text = text.replace(" DIR", new).replace(" FOLDER", new)
    asked = text.split()
    runs = iter(("bps", "controlnet"))
    for number, word in enumerate(asked):
        if word in ("RUN", "OTHER") or word.startswith("results/runs/RUN"):
            run = first(folder / "results/runs", "controlnet" if word == "OTHER" else next(runs))
            asked[number] = f"{run}{word.removeprefix('results/runs/RUN') if '/' in word else ''}"
        elif word == "results/adapted/RUN":
            asked[number] = str(first(folder / "results/adapted", "style-only"))
    more = next((given for start, given in MORE.items() if text.startswith(start)), {})
    more = {**more, **(OWN if "folder" in asked else {})}
    if words[0] == "tune":  # evidence of other seeds and draws is kept apart
        more["--out"] = f"rates{len(list(folder.glob('rates*')))}"
    return [*asked, *(word for pair in more.items() if pair[0] not in asked for word in pair if word)]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("words", HERE, ids=" ".join)
def test_a_command_of_the_docs_runs(words: Sequence[str], place: Path) -> None:
    done(*smaller(words, place))
