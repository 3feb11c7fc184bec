"""What goes out to a terminal, and how strictly the command line reads what comes in."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from bench.base.load import load_base
from bench.cli.options import guarded, parse_options
from bench.cli.terminal import say, substitute_what_it_lacks, visible
from bench.config import Sampler
from bench.content import CACHE_VARIABLE, Cache
from bench.packed import kept_records
from bench.record import record_values
from bench.sampling import check_steps
from bench.training.engine import launched, speaks
from bench.types import BenchError, lacks_memory, raise_of_machine
from tests.command_line import bench

PUBLISHED = Path(__file__).resolve().parent.parent / "results" / "emoji"


def test_names_from_a_record_cannot_steer_the_terminal(tmp_path: Path) -> None:
    values = record_values(kept_records(PUBLISHED)[0])
    (tmp_path / "record.json").write_text(json.dumps({**values, "attribution": "\x1b[31mred\x9b2J\u202e"}))
    for words in ((), ("--json",)):
        shown = bench("show", tmp_path, *words)
        assert not {"\x1b", "\x9b", "\u202e"} & set(shown.output)
    wrong = bench("show", tmp_path / "\x1b[31mgone")
    assert wrong.exit_code == 2 and "\x1b" not in wrong.output
    assert visible("a\x1b[2J\r\x7f\u2028\ud800") == r"a\x1b[2J\r\x7f\u2028\ud800"
    assert visible("ümlaut ↓\n\tCJK 字 \xa0") == "ümlaut ↓\n\tCJK 字 \xa0"


def test_a_terminal_that_lacks_a_character_gets_a_substitute(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr("sys.stdout", screen)
    substitute_what_it_lacks()
    say("FD ↓")
    screen.flush()
    assert screen.buffer.getvalue() == b"FD \\u2193\n"  # type: ignore[attr-defined]


TWICE = [
    ("run", "--base", "a", "--base", "b"),
    ("run", "--floor", "--no-floor"),
    ("train", "--side", "val", "--side", "test"),
    ("show", "x", "--diff", "a", "--diff", "b"),
    ("study", "make", "a", "--out", "b", "--out", "c"),
    ("base", "show", "x", "--base-variant", "a", "--base-variant", "b"),
    ("data", "verify", "--suite", "emoji", "--suite", "micro"),
]


@pytest.mark.parametrize("words", TWICE, ids=" ".join)
def test_an_option_of_one_value_is_not_taken_twice(words: tuple[str, ...]) -> None:
    answer = bench(*words)
    assert answer.exit_code == 2 and "more than once" in answer.output
    with pytest.raises(BenchError, match="schedule came more than once"):
        parse_options(["schedule=a", "schedule=b"])


def test_options_that_take_a_list_add_up() -> None:
    for words in (("--method", "bps", "--method", "bsp"), ("--method", "bsp", "--method", "bps")):
        answer = bench("run", *words)
        assert answer.exit_code == 2 and "'bsp'" in answer.stderr
    answer = bench("run", "--seed", 0, "--seeds", "1,x", "--seed", 2)
    assert answer.exit_code == 2 and "'seed'" in answer.stderr and "'x'" in answer.stderr
    answer = bench("train", "--method", "bps", "--method", "text-only")
    assert answer.exit_code == 2 and "2 runs" in answer.stderr
    answer = bench("tune", "--rates", "1e-3", "--rates", "x")
    assert answer.exit_code == 2 and "1e-3,x" in answer.stderr


NUMBERS = [
    ("run", "--seed", 2**70),
    ("train", "--seed", 2**70),
    ("train", "--seed", -1),
    ("run", "--learning-rate", "inf"),
    ("run", "--learning-rate", "nan"),
    ("run", "--learning-rate", "1e30"),
    ("run", "--guidance", "inf"),
    ("run", "--guidance", "nan"),
    ("run", "--sample-batch", 10**30),
    ("run", "--train-items", 10**30),
    ("run", "--checkpoint-every", 2**64),
    ("run", "--jobs", 10**30),
    ("run", "--ema", "nan"),
    ("run", "--cpus-per-run", "inf"),
    ("plan", "--mfu", "nan"),
    ("tune", "--rates", "nan"),
    ("tune", "--rates", "inf"),
    ("study", "make", "a", "b", "--out", "c", "--checks", "nan"),
    ("run", "--option", "sites=NaN"),
    ("run", "--option", "sites=[1e999]"),
]


@pytest.mark.parametrize("words", NUMBERS, ids=[" ".join(map(str, w))[:50] for w in NUMBERS])
def test_numbers_that_are_none_are_refused(words: tuple[object, ...]) -> None:
    answer = bench(*words)
    assert answer.exit_code == 2 and isinstance(answer.exception, SystemExit)


def test_more_sampling_steps_than_the_base_has_are_refused_before_anything_is_trained(
    micro_folder: Path, tmp_path: Path
) -> None:
    base = load_base(micro_folder)
    for name, most in (("ddim", 999), ("dpm++", 1000)):
        check_steps(base, Sampler(name=name, steps=most))
        with pytest.raises(BenchError, match=f"--sampling-steps {most + 1}"):
            check_steps(base, Sampler(name=name, steps=most + 1))
    words = ("--suite", "micro", "--base", micro_folder, "--results", tmp_path, "--device", "cpu")
    assert bench("run", *words, "--sampling-steps", 1001).exit_code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "RANK"])
@pytest.mark.parametrize("value", ["two", "-1", "1.5", "", "9" * 5000])
def test_what_a_launcher_says_is_a_number(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(variable, value)
    with pytest.raises(BenchError, match=variable):
        launched()
        speaks()
    assert bench("run", "--method", "bsp").exit_code == 2


def no_memory() -> list[BaseException]:
    found: list[BaseException] = [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")]
    for make in (lambda: torch.empty(2**60), lambda: np.empty(2**58)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            make()
        found.append(caught.value)
    return found


def test_memory_that_cannot_be_had_is_said_and_is_no_damage() -> None:
    for error in [*no_memory(), OSError(28, "No space left on device")]:
        with pytest.raises(type(error)):
            raise_of_machine(error)
    raise_of_machine(RuntimeError("size mismatch"))
    for error in no_memory():
        assert lacks_memory(error)
        app = typer.Typer()

        @app.command()
        @guarded
        def command(error: Any = typer.Option(error, hidden=True, parser=lambda text: text)) -> None:
            raise error

        answer = CliRunner().invoke(app)
        assert answer.exit_code == 2 and "memory" in answer.stderr


def test_a_base_is_not_called_damaged_for_want_of_memory(
    micro_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import diffusers

    def full(*_: Any, **__: Any) -> Any:
        torch.empty(2**60)

    monkeypatch.setattr(diffusers.UNet2DConditionModel, "from_pretrained", full)
    with pytest.raises(RuntimeError) as caught:
        load_base(micro_folder)
    assert lacks_memory(caught.value)


def test_a_cache_that_cannot_be_written_or_has_no_home_names_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(BenchError, match=CACHE_VARIABLE):
        Cache(tmp_path / "file").load_or_make({"a": 1}, lambda: {"x": np.zeros(1)})

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert Cache().folder == Path(os.environ[CACHE_VARIABLE])
    monkeypatch.delenv(CACHE_VARIABLE)
    with pytest.raises(BenchError, match=CACHE_VARIABLE):
        Cache()


def test_help_says_every_character_of_its_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # no word is cut
    for words in (("run",), ("base", "show")):
        assert "[@revision]" in bench(*words, "--help").output
