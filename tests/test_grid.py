"""Grids of runs and the choice of learning rates: skip, go on, say so, never on the test side."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import bench.grid
import bench.tune
import cli
from bench import registry
from bench.cli.options import Asked, parse_options, read_config
from bench.config import RunConfig, make_config
from bench.grid import Outcome, run_grid
from bench.packed import kept_records
from bench.record import load_record
from bench.running import identify
from bench.suites import EMOJI, method_of, resolve
from bench.tune import evidence, tune_rates, tuned_rate, write_evidence
from bench.types import BenchError, Hooks, Refused, Stopped, Task
from tests.asking import made, micro
from tests.test_child import foreign

RUNNER = CliRunner()
ROOT = Path(__file__).resolve().parent.parent


def bench_command(*words: object) -> Any:
    return RUNNER.invoke(cli.app, [str(w) for w in words])


@pytest.fixture(scope="module")
def config(micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return micro(micro_folder, tmp_path_factory.mktemp("grid"))


class Ended:
    """A run of a grid that has ended, or is yet to: `codes` are what `poll` says, the last for good."""

    def __init__(self, *codes: int | None) -> None:
        self.codes, self.terminated = list(codes), False

    def poll(self) -> int | None:
        return self.codes.pop(0) if len(self.codes) > 1 else self.codes[0]

    def terminate(self) -> None:
        self.terminated = True

    def last_line(self) -> str:
        return "see above"


def in_process(words: Sequence[str]) -> Ended:
    """Start a run of a grid here: the same command line, without a second interpreter's start."""
    return Ended(int(bench_command(*words).exit_code))


def grid(config: RunConfig, methods: Sequence[str], *, start: Any = in_process) -> list[Outcome]:
    return run_grid([replace(config, method=name) for name in methods], start=start)


def run_id(config: RunConfig, **changes: Any) -> str:
    return identify(resolve(replace(config, **changes))).run_id


def test_a_failing_run_does_not_stop_the_others_and_is_done_later(config: RunConfig) -> None:
    seeds = [replace(config, method="text-only", seed=seed, shuffled=False, limit=10) for seed in (0, 1)]
    broken = made(seeds[0])
    broken.work.mkdir(parents=True)
    (broken.work / "run.json").write_text("{}")
    first, second = run_grid(seeds, start=in_process)
    assert first.record is None and first.error is not None and "exit code 2" in first.error
    assert second.record is not None and second.record.seed == 1
    broken.forget()
    started: list[Sequence[str]] = []

    def counted(words: Sequence[str]) -> Ended:
        started.append(words)
        return in_process(words)

    outcomes = run_grid(seeds, start=counted)
    assert [o.record is not None for o in outcomes] == [True, True]
    assert [o.config.seed for o in outcomes] == [0, 1]
    (words,) = started
    assert make_config(read_config(words[-1])) == seeds[0], "a valid record is not made again"


def test_a_variant_is_its_method_with_options_set(config: RunConfig) -> None:
    by_name = made(config, method="bps-uniform")
    by_option = made(config, options={"schedule": "uniform"})
    assert by_name.id == by_option.id != run_id(config)
    variants = [name for name, row in registry.rows("method").items() if row.variant_of]
    assert "bps-uniform" in variants
    for name in variants:
        spec = resolve(replace(config, method=name))
        assert dict(spec.options) != dict(spec.method.options)


@pytest.mark.slow
def test_the_command_runs_a_grid_in_processes_of_their_own_wherever_the_user_stands(
    micro_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = foreign(tmp_path / "elsewhere")
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("PYTHONPATH", str(elsewhere))  # would come before what this program was found by
    where = ("--suite", "micro", "--base", micro_folder, "--results", tmp_path, "--device", "cpu")
    words = (*where, "--sample-batch", 4, "--limit", 10, "--sampling-steps", 1)
    done = bench_command("run", "--method", "text-only", "--seeds", "0,1", "--json", *words)
    assert done.exit_code == 0, done.output
    assert not (elsewhere / "ran").exists()
    folders = json.loads(done.stdout)
    assert len(folders) == 2 and len({load_record(Path(f)).seed for f in folders.values()}) == 2


def test_the_command_says_which_runs_of_a_grid_failed(micro_folder: Path, tmp_path: Path) -> None:
    words = ("--seeds", "0,2", "--suite", "micro", "--results", tmp_path / "runs", "--base")
    refused = bench_command("run", *words, micro_folder, "--again")
    assert refused.exit_code == 2 and "--again" in refused.output
    shared = bench_command("run", *words, tmp_path)
    assert shared.exit_code == 2 and len(shared.stderr.splitlines()) == 1 and "base model" in shared.stderr
    failed = bench_command("run", *words, micro_folder, "--option", "schedul=uniform")
    assert failed.exit_code == 1
    assert "0 of 2 runs have a record" in failed.output and "again: bench run" in failed.output


def test_being_asked_to_stop_ends_the_grid(config: RunConfig) -> None:
    class Stopping(Hooks):
        def stop(self) -> int | None:
            return 143

    cells = [replace(config, method="text-only", seed=seed) for seed in (0, 1)]
    with pytest.raises(Stopped):
        run_grid(cells, hooks=Stopping())
    with pytest.raises(Stopped):
        fresh = replace(config, results=config.results / "fresh")
        grid(fresh, ["text-only"], start=lambda words: Ended(130))


def test_several_jobs_run_at_once_and_all_save_when_one_is_stopped(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = replace(config, results=config.results / "jobs")
    at_once, most = [], []

    def start(words: Sequence[str]) -> Ended:
        at_once.append(Ended(None, None, 2))
        most.append(sum(len(child.codes) > 1 for child in at_once))
        return at_once[-1]

    names = ["bps", "bps-uniform", "text-only"]
    configs = [replace(fresh, method=name) for name in names]
    monkeypatch.setattr(bench.grid, "starter", lambda jobs, **how: start)
    outcomes = run_grid(configs, jobs=2)
    assert [o.config.method for o in outcomes] == names and max(most) == 2
    assert all(o.error == "failed with exit code 2, see above" for o in outcomes)
    children = [Ended(143), Ended(None, None, 143)]
    waiting = iter(children)
    with pytest.raises(Stopped):
        monkeypatch.setattr(bench.grid, "starter", lambda jobs, **how: lambda words: next(waiting))
        run_grid(configs, jobs=2)
    assert children[1].terminated and children[1].codes == [143], "the other run was awaited"


def test_only_the_first_seed_of_a_grid_is_sampled_under_shuffled_conditions(config: RunConfig) -> None:
    each = {"method": ("bps",), "task": ("sketch",), "seed": (3, 1)}
    cells = Asked(config=config, each=each).cells()
    assert [(c.seed, c.shuffled) for c in cells] == [(3, True), (1, False)]
    assert "--no-shuffled" in cells[1].command() and "shuffled" not in cells[0].command()
    assert [list(made(c)._sets()) for c in cells] == [["samples", "shuffled", "blank"], ["samples"]]


class LinesOnly:
    """A method that says it cannot do a task."""

    name = "lines-only"
    title = "lines only"
    source = "https://example.org"
    conditioned = True
    options: dict[str, Any] = {}

    def refuses(self, task: Task) -> str | None:
        return None if task.name == "drawing" else "it needs colours"

    def build(self, base: Any, task: Task) -> Any:
        raise AssertionError("never built")


def test_a_method_that_cannot_do_a_task_says_so(config: RunConfig) -> None:
    name = f"{__name__}:LinesOnly"
    listed = bench_command("list", name, "--json")
    assert json.loads(listed.stdout)["cannot do"]["sketch"] == "it needs colours"
    with pytest.raises(Refused, match="lines-only cannot do sketch: it needs colours"):
        made(config, method=name)
    (outcome,) = grid(config, [name])
    assert outcome.error is None and outcome.refused is not None


def test_names_and_numbers_of_the_command_line(config: RunConfig) -> None:
    paper = ("bps", "controlnet", "t2i-adapter", "sd-finetune", "text-only")
    assert registry.names("method", ["paper"]) == paper
    assert registry.names("method", ["controlnet", "paper"]) == ("controlnet", "bps", *paper[2:])
    assert registry.names("task", ["drawing", "all", "a.module:Own"])[0] == "drawing"
    with pytest.raises(BenchError, match="Did you mean 'sketch'"):
        registry.names("task", ["skech"])
    asked = bench_command("run", "--seeds", "2,0,2", "--print-config")
    assert yaml.safe_load(asked.stdout)["seed"] == [2, 0]
    for wrong in ("", "a", "-1", "1.5"):
        refused = bench_command("run", "--seeds", wrong, "--print-config")
        assert refused.exit_code == 2 and "seed" in refused.stderr, wrong
    for rates in (["0", "1e-3"], ["a"], [], ["nan"]):
        with pytest.raises(BenchError, match="no list of rates"):
            tune_rates([config], rates=rates, out=config.results, hooks=Hooks(), say=len)


def outcome_of(rate: float, **what: Any) -> Outcome:
    return Outcome(name="x", config=RunConfig(learning_rate=rate), **what)


@pytest.mark.slow
def test_the_best_rate_on_val_is_chosen_and_a_failed_one_never(
    micro_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.grid, "starter", lambda jobs, **how: in_process)
    where = ("--base", micro_folder, "--results", tmp_path / "runs", "--out", tmp_path / "tuning")
    little = ("--budget", "quick", "--train-images", 16, "--limit", 10, "--sampling-steps", 1)
    words = ("--method", "bps", "--suite", "micro", "--device", "cpu", "--rates", "1e-3,9e5")
    done = bench_command("tune", *words, *where, *little)
    name = "micro-sketch-quick-16images-10eval.json"
    found = json.loads((tmp_path / "tuning" / name).read_text())
    trials = found["methods"]["bps"]["trials"]
    assert found["side"] == "val" and found["items"] == 10
    assert done.exit_code == (1 if any("error" in t for t in trials.values()) else 0)
    values = {rate: t["cosine"]["value"] for rate, t in trials.items() if "cosine" in t}
    best = max(values, key=lambda rate: values[rate])
    assert found["methods"]["bps"]["chosen"] == float(best)
    table = (tmp_path / "tuning" / "micro-sketch-quick-16images-10eval.md").read_text()
    assert "**" in table and f"\nTrained on cpu, torch {version('torch')}.\n" in table
    records = [load_record(p) for p in (tmp_path / "runs").iterdir() if (p / "record.json").exists()]
    good = outcome_of(1.0, record=records[0])
    bad = outcome_of(2.0, error="diverged")
    assert evidence([good, bad])["methods"]["bps"]["chosen"] == 1.0
    with pytest.raises(BenchError, match="every run failed"):
        evidence([bad])
    merged = write_evidence(
        tmp_path / "tuning", {**evidence([good]), "methods": {"z": found["methods"]["bps"]}}
    )
    assert set(json.loads(merged[0].read_text())["methods"]) == {"bps", "z"}
    again = evidence([good, outcome_of(1.0, record=records[0]), outcome_of(3.0, error="at one seed")])
    assert again["methods"]["bps"]["chosen"] == 1.0 and again["methods"]["bps"]["at_the_edge"]
    three = write_evidence(tmp_path / "tuning", again)[0]
    kept = json.loads(three.read_text())["methods"]["bps"]
    assert set(kept["trials"]) == {*trials, "1", "3"}, "rates tried earlier are kept"
    spec = resolve(make_config({**records[0].config, "base": str(micro_folder)}))
    assert tuned_rate(tmp_path / "tuning", spec) == kept["chosen"]
    other = replace(spec, options={**spec.options, "schedule": "uniform"})
    assert tuned_rate(tmp_path / "tuning", other) is None
    with pytest.raises(BenchError, match="another protocol"):
        write_evidence(tmp_path / "tuning", {**evidence([good]), "protocol_hash": "0"})


@pytest.mark.parametrize("value", ["plain", "[" * 100_000, "9" * 5000])
def test_an_option_that_is_no_json_is_text(value: str) -> None:
    assert parse_options([f"prior={value}", "size=7"]) == {"prior": value, "size": 7}


@pytest.mark.parametrize("damage", [7, [], {"bps": {"trials": {}}}, {"bps": {"chosen": "x"}}])
def test_damaged_evidence_is_refused(tmp_path: Path, damage: Any) -> None:
    whole = json.loads((ROOT / "results" / "tuning" / "emoji-sketch.json").read_text())
    path = tmp_path / "emoji-sketch.json"
    path.write_text(json.dumps(whole))
    none = {**whole, "methods": {}}
    assert write_evidence(tmp_path, none)[0] == path and json.loads(path.read_text()) == whole
    path.write_text(json.dumps({**whole, "methods": damage}))
    with pytest.raises(BenchError, match="emoji-sketch.json"):
        write_evidence(tmp_path, none)


def test_rates_are_never_chosen_on_the_test_side(tmp_path: Path) -> None:
    done = bench_command("tune", "--side", "test", "--rates", "1e-3", "--out", tmp_path / "out")
    assert done.exit_code == 2 and "never chosen where they are reported" in done.output
    assert not (tmp_path / "out").exists()


def test_a_grid_goes_on_until_no_best_rate_lies_at_its_edge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BPS is best at 1e-5, below the grid; ControlNet at .1, above which it diverges; both of two seeds."""
    record = next(r for r in kept_records(ROOT / "results" / "emoji") if r.method == "bps")
    protocol = identify(resolve(RunConfig(side="val"))).protocol
    best, asked_for = {"bps": 1e-5, "controlnet": 0.1}, []

    def ran(configs: Sequence[RunConfig], **_: Any) -> list[Outcome]:
        asked_for.append([(c.method, c.learning_rate, c.seed) for c in configs])
        return [trial(c) for c in configs]

    def trial(config: RunConfig) -> Outcome:
        rate = config.learning_rate or 0.0
        if rate > 0.1:
            return Outcome(name="x", config=config, error="diverged")
        far = abs(math.log(rate / best[config.method]))
        value = replace(record.metrics["cosine"], value=1 - far / 100)
        _, options = method_of(config)
        own = {"method": config.method, "options": options, "metrics": {"cosine": value}}
        own["protocol_hash"] = protocol.hash
        return Outcome(name="x", config=config, record=replace(record, **own))

    monkeypatch.setattr(bench.tune, "run_grid", ran)
    configs = [RunConfig(method=m, side="val", seed=s) for s in (0, 1) for m in (*best, "text-only")]
    said: list[str] = []
    given = {"rates": ["1e-4", "3e-4", "1e-3"], "out": tmp_path, "hooks": Hooks(), "say": said.append}
    tune_rates(configs, **given)
    assert len(asked_for) == 1 and [line[:40] for line in said if "edge" in line] == [
        "sketch, bps: 0.0001 lies at the edge of ",
        "sketch, controlnet: 0.001 lies at the ed",
    ]
    said.clear()
    (evidence_file, _), outcomes = tune_rates(configs, **given, extend=True)
    added = [{(m, r) for m, r, _ in part} for part in asked_for[2:]]
    steps = zip((3e-5, 1e-5, 3e-6), (3e-3, 1e-2, 3e-2), strict=True)
    assert added[:3] == [{("bps", low), ("controlnet", high)} for low, high in steps]
    assert added[3:] == [{("controlnet", 0.1)}, {("controlnet", 0.3)}]
    assert len(outcomes) == 2 * 2 * 3 + 2 * (3 + 5)
    methods = json.loads(evidence_file.read_text())["methods"]
    assert {m: (e["chosen"], e["at_the_edge"]) for m, e in methods.items()} == {
        m: (rate, False) for m, rate in best.items()
    }
    assert said == [
        "sketch, bps: 1e-05 is chosen, the suite has 0.001",
        "sketch, controlnet: 0.1 is chosen, the suite has 0.003",
    ]


def test_evidence_of_other_seeds_or_protocol_is_refused_before_the_first_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = json.loads((ROOT / "results" / "tuning" / "emoji-sketch.json").read_text())
    (tmp_path / "emoji-sketch.json").write_text(json.dumps(whole))
    monkeypatch.setattr(bench.tune, "run_grid", lambda *_, **__: pytest.fail("a trial ran"))
    given = {"rates": ["1e-3"], "out": tmp_path, "hooks": Hooks(), "say": print}
    seeds = whole.get("seeds") or [whole["seed"]]
    for others, steps in (([9], None), (seeds, 3)):
        configs = [RunConfig(seed=seed, sampling_steps=steps) for seed in others]
        with pytest.raises(BenchError, match=r"emoji-sketch\.json holds trials of another protocol or seeds"):
            tune_rates(configs, **given)


def test_a_run_takes_the_rate_that_was_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = dict(resolve(RunConfig(device="cpu")).options)
    tuned = {"method": "bps", "options": options, "chosen": 2e-4, "at_the_edge": False, "trials": {}}
    found = {"protocol_hash": "0", "budget": {"train_images": 3200}, "methods": {"bps": tuned}}
    (tmp_path / "emoji-sketch.json").write_text(json.dumps(found))
    started: list[RunConfig] = []
    monkeypatch.setattr(bench.grid, "run_grid", lambda configs, **_: started.extend(configs) or [])
    done = bench_command("run", "--method", "bps,controlnet", "--device", "cpu", "--tuned", tmp_path)
    assert done.exit_code == 0 and [c.learning_rate for c in started] == [2e-4, None], done.output


def test_tuning_takes_the_variants_of_an_ablation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[RunConfig] = []
    monkeypatch.setattr(bench.tune, "tune_rates", lambda configs, **_: (started.extend(configs), [])[1:] * 2)
    assert bench_command("tune", "--ablation", "prior", "--seeds", "0,1").exit_code == 0
    priors = [{}, {"prior": "free"}, {"prior": "none"}, {"prior": "none-frozen"}]
    assert [(c.seed, dict(c.options)) for c in started] == [(s, o) for s in (0, 1) for o in priors]


TUNED = replace(
    EMOJI,
    name="tuned",
    learning_rates={"bps": 2e-4, ("drawing", "bps"): 3e-4, "bps-free": 4e-4, ("drawing", "bps-free"): 5e-4},
)


def test_a_methods_rate_is_its_own_then_the_suites() -> None:
    expected = EMOJI.learning_rates.get("bps", EMOJI.learning_rate)
    assert resolve(RunConfig(device="cpu")).learning_rate == expected
    assert resolve(RunConfig(device="cpu", learning_rate=5e-4)).learning_rate == 5e-4
    rates = {
        ("sketch", "bps"): 2e-4,
        ("drawing", "bps"): 3e-4,
        ("sketch", "bps-free"): 4e-4,
        ("drawing", "bps-free"): 5e-4,
        ("sketch", "bps-unlocked"): 2e-4,
        ("drawing", "bps-unlocked"): 3e-4,
        ("sketch", "controlnet"): EMOJI.learning_rate,
    }
    for (task, method), rate in rates.items():
        own = RunConfig(device="cpu", suite=f"{__name__}:TUNED", task=task, method=method)
        assert resolve(own).learning_rate == rate, (task, method)
    spelled = RunConfig(device="cpu", suite=f"{__name__}:TUNED", options={"prior": "free"})
    assert resolve(spelled).learning_rate == 4e-4, "a variant by its options"
