"""What the command line refuses: bad input, a damaged base, another protocol, a stage too early."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.command_line import bench, folder_of, micro

BAD = [
    (["run", "--method", "bsp"], "unknown method 'bsp'. Did you mean 'bps'?"),
    (["run", "--task", "sketches"], "Did you mean 'sketch'?"),
    (["run", "--suite", "emojis"], "Did you mean 'emoji'?"),
    (["run", "--suite", "micro"], "brings no base model"),
    (["run", "--budget", "quik"], "Did you mean 'quick'?"),
    (["run", "--device", "gpu"], "--device"),
    (["run", "--option", "schedule"], "is not name=value"),
    (["run", "--base", "/nowhere"], "no base model in"),
    (["report", "--results", "/nowhere"], "/nowhere"),
    (["show", "/nowhere"], "/nowhere"),
    (["data", "verify", "--suite", "emojy"], "Did you mean 'emoji'?"),
    (["list", "bsp"], "Did you mean 'bps'?"),
    (["run", "--budget", "quick", "--budgets", "full"], "--budgets"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[" ".join(w) for w, _ in BAD])
def test_bad_input_gets_a_message_and_exit_code_2(words: list[str], message: str) -> None:
    answer = bench(*words)
    assert answer.exit_code == 2
    assert message in answer.stderr and "Traceback" not in answer.output


MICRO_BAD = [
    (["--option", "schedul=uniform"], "Did you mean 'schedule'?"),
    (["--option", "schedule=head_havy"], "head_heavy"),
    (["--option", "prior=fozen"], "prior"),
    (["--option", "sites=encode"], "encoder"),
    (["--option", "sites=3"], "method bps"),
    (["--option", "schedule=null"], "method bps"),
    (["--learning-rate", "1e6"], "Lower --learning-rate"),
]


@pytest.mark.parametrize(("words", "message"), MICRO_BAD, ids=[w[1] for w, _ in MICRO_BAD])
def test_bad_options_get_a_message(
    micro_folder: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    answer = bench(*micro(micro_folder, tmp_path, "--no-floor", *words))
    assert answer.exit_code == 2
    assert message in answer.stderr and "Traceback" not in answer.output


def test_a_damaged_base_is_refused_by_digest(micro_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(micro_folder, tmp_path / "base"))
    weights = copy / "unet/diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    answer = bench(*micro(copy, tmp_path / "results"))
    assert answer.exit_code == 2 and "does not match its SHA-256" in answer.stderr
    weights.unlink()
    answer = bench(*micro(copy, tmp_path / "results"))
    assert answer.exit_code == 2 and "is missing" in answer.stderr


def test_a_results_folder_that_cannot_be_written(micro_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    answer = bench(*micro(micro_folder, tmp_path / "file"))
    assert answer.exit_code == 2 and "cannot write" in answer.stderr


def test_a_run_folder_of_another_protocol_is_refused(micro_folder: Path, tmp_path: Path) -> None:
    command = ["train", *micro(micro_folder, tmp_path, "--method", "text-only")[1:]]
    assert bench(*command).exit_code == 0
    path = folder_of(tmp_path, "text-only") / "work/run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "protocol_hash": "0" * 64}))
    answer = bench(*command)
    assert answer.exit_code == 2
    assert "another protocol" in answer.stderr and "protocol_hash" in answer.stderr


def test_a_stage_before_its_time_says_what_is_missing(micro_folder: Path, tmp_path: Path) -> None:
    options = ["--suite", "micro", "--base", micro_folder, "--results", tmp_path]
    early = bench("score", *options)
    assert early.exit_code == 2 and "train and sample first" in early.stderr
    early = bench("sample", *options)
    assert early.exit_code == 2 and "no trained weights" in early.stderr
