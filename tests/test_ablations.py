"""Ablations: a table without hidden differences, runs that exist, are taken over or made, resumed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import cli
from bench import registry
from bench.ablations import ABLATIONS, ABLATIONS_FOLDER, SETTINGS, Ablation, Variant
from bench.base.load import Base
from bench.base.snapshot import find_snapshot
from bench.cli.options import read_config
from bench.cli.run import plan_text
from bench.config import RunConfig, make_config
from bench.content import read_json, sha256_file, write_json
from bench.data.leaks import write_seen
from bench.grid import (
    CANNOT,
    EXISTS,
    MISSING,
    Planned,
    do_ablation,
    plan_ablation,
    records_of_paces,
    seconds_of,
)
from bench.packed import load_run
from bench.randomness import pick_items
from bench.record import OWN_STYLES, load_record
from bench.reporting import build_table
from bench.running import Hooks, Run, identify, train_items
from bench.suites import EMOJI, MICRO, method_of, resolve
from bench.training.checkpoint import find_trained
from bench.types import BenchError
from bps.schedule import released
from tests.asking import made, micro

RUNNER = CliRunner()


def bench_command(*words: object) -> Any:
    return RUNNER.invoke(cli.app, [str(w) for w in words])


def asked(base: Path, results: Path, **changes: Any) -> RunConfig:
    return micro(base, results, budget="quick", shuffled=False, **changes)


def training_of(config: RunConfig, **changes: Any) -> str:
    return identify(resolve(replace(config, **changes))).training


@pytest.fixture(scope="module")
def done_once(micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with one finished run of BPS; read only."""
    results = tmp_path_factory.mktemp("finished")
    made(asked(micro_folder, results)).all()
    return results


@pytest.fixture
def results(done_once: Path, tmp_path: Path) -> Path:
    """A copy of `done_once`."""
    return Path(shutil.copytree(done_once, tmp_path / "results"))


SMALL = Ablation(
    name="small",
    question="Which?",
    reference="frozen prior",
    fixed="all else",
    variants=(
        Variant(name="frozen prior"),
        Variant(name="free prior", options={"prior": "free"}),
        Variant(name="frozen prior", train_items=5),
    ),
)


def test_settings_are_the_methods_own_defaults() -> None:
    for method, task in product(SETTINGS, EMOJI.tasks):
        _, options = method_of(RunConfig(method=method, task=task))
        plain = Variant(name=method, method=method)
        settings = {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
        assert settings == plain.settings(task) and plain.is_plain(task)


def test_a_schedule_is_the_papers_own_on_the_tasks_that_have_it() -> None:
    schedules = {v.name: v for v in ABLATIONS["schedule"].variants}
    uniform, head_heavy = schedules["uniform 1-1-1-1"], schedules["head-heavy 16-8-4-2"]
    assert [head_heavy.is_plain(task) for task in ("sketch", "layout")] == [True, False]
    assert [uniform.is_plain(task) for task in ("sketch", "layout")] == [False, True]


def test_rows_say_what_they_compare() -> None:
    for name, ablation in ABLATIONS.items():
        assert name == ablation.name and set(ablation.tasks) <= set(EMOJI.tasks)
        assert ablation.budget in EMOJI.budgets and ablation.question.endswith("?")
        seen = [(v.name, v.amount) for v in ablation.variants]
        assert len(set(seen)) == len(seen)
        for variant in ablation.variants:
            reference = ablation.reference_of(variant)
            assert all(reference.is_plain(task) for task in ablation.tasks)
            assert reference.guidance is None and reference.steps is None
            assert set(variant.options) <= set(registry.load("method", variant.method).options)
    kinds = {
        len(v.options.keys() - {"emit_rate", "weights_rate"}) for a in ABLATIONS.values() for v in a.variants
    }
    assert kinds == {0, 1}, "a variant changes one thing, and the rates that belong to it"


def test_steeper_and_flatter_schedules_fall_from_the_same_head() -> None:
    falls = {}
    for variant in ABLATIONS["schedule"].variants:
        weights = variant.settings("sketch")["schedule"]
        if isinstance(weights, list):
            assert len(weights) == 13 and weights[0] == weights[12] == 16.0
            falls[variant.name] = [a / b for a, b in pairwise(weights[0:12:3])]
    assert all(fall == pytest.approx(4.0) for fall in falls["steeper 16-4-1-0.25"])
    assert all(f == pytest.approx(2**0.5, 1e-3) for f in falls["flatter 16-11.3-8-5.7"])


def test_fewer_training_items_are_a_part_of_more_and_say_so(micro_folder: Path, tmp_path: Path) -> None:
    runs = [made(asked(micro_folder, tmp_path, train_items=n)) for n in (5, 20, None)]
    few, more, whole = (set(run.train_ids) for run in runs)
    assert few < more < whole and len(few) == 5 and len(more) == 20
    assert runs[0].train_ids == pick_items(sorted(whole), 5)
    assert runs[0].spec.budget.name == "quick-5" and "-quick-5-s0-" in runs[0].id
    assert runs[0].protocol.as_dict()["budget"]["train_items"] == 5
    assert "train_items" not in runs[2].protocol.as_dict()["budget"]
    assert len({run.protocol.hash for run in runs}) == 3
    assert [r.split_info.train.n for r in runs] == [5, 20, len(whole)]
    with pytest.raises(BenchError, match="--train-items 99999"):
        made(asked(micro_folder, tmp_path, train_items=99999))


def test_few_items_are_chosen_at_random_several_times(micro_folder: Path, tmp_path: Path) -> None:
    """Whatever the training seed; the first choice is the one that there was before."""
    config = micro(micro_folder, tmp_path, budget="quick")
    few = ABLATIONS["data"].only(["controlnet"])
    planned = plan_ablation(few, config, tasks=("sketch",), seeds=(0, 1))
    assert len(planned) == 2 * (3 * 3 + 2) == len({entry.folder for entry in planned})
    assert {entry.name for entry in planned} >= {
        "controlnet (10), choice 2, sketch, seed 1",
        "controlnet (640), sketch, seed 0",
    }
    chosen: dict[tuple[int, int], set[tuple[str, ...]]] = {}
    side, trainings = config_splits(config), set()
    for entry in planned:
        budget = entry.spec.budget
        place = (budget.train_items or 0, budget.train_subset)
        chosen.setdefault(place, set()).add(train_items(side, budget))
        assert entry.identity is not None
        trainings.add(entry.identity.training)
    assert all(len(items) == 1 for items in chosen.values()) and len(trainings) == len(planned)
    assert chosen[10, 0] == {pick_items(side, 10)} and "choice" not in planned[0].spec.budget.name
    assert len({items for place, found in chosen.items() if place[0] == 10 for items in found}) == 3
    with pytest.raises(BenchError, match="--train-items"):
        resolve(replace(config, train_subset=1))


def config_splits(config: RunConfig) -> tuple[str, ...]:
    return tuple(resolve(config).suite.splits().side("train"))


def test_what_is_the_suites_own_is_no_change(micro_folder: Path, tmp_path: Path) -> None:
    plain = made(asked(micro_folder, tmp_path))
    sampler = {"guidance": MICRO.sampler.guidance, "sampling_steps": MICRO.sampler.steps}
    own = asked(micro_folder, tmp_path, **sampler)
    assert made(own).id == plain.id
    other = made(own, guidance=1.0)
    assert other.id != plain.id and other.protocol.sampler.guidance == 1.0
    key = plain.identity.training
    assert other.identity.training == key == training_of(own)
    different: list[dict[str, Any]] = [
        {"train_items": 5},
        {"train_images": 40},
        {"train_batch": 4},
        {"options": {"prior": "free"}},
        {"learning_rate": 1e-2},
        {"seed": 1},
    ]
    for changes in different:
        assert training_of(own, **changes) != key, changes


@pytest.mark.slow
def test_weights_taken_over_give_the_bits_of_a_run_that_trained_itself(
    micro_folder: Path, results: Path, tmp_path: Path
) -> None:
    plain = made(asked(micro_folder, results))
    older = read_json(plain.work / "train.json")
    older.pop("starts")  # folders of earlier versions say less
    write_json(plain.work / "train.json", older)
    other = asked(micro_folder, results, guidance=1.0, sampling_steps=2)
    taken = made(other)
    record = taken.all()
    assert record.trained_in == plain.id and not (taken.work / "train.ckpt").exists()
    assert record.changes == {"guidance": 1.0, "steps": 2}
    alone = made(other, results=tmp_path / "two")
    own = alone.all()
    assert own.trained_in is None and (alone.work / "train.ckpt").exists()
    assert own.artifacts == record.artifacts and own.rows == record.rows
    assert own.metrics != load_record(plain.folder).metrics, "another guidance is another result"
    assert "trained_in" not in read_json(plain.folder / "record.json")
    again = made(other)
    assert again.train().steps == record.cost.train_images // MICRO.training.batch, (
        "taken over once, not trained again"
    )
    assert not (again.work / "train.ckpt").exists()


@pytest.mark.slow
def test_only_whole_and_equal_trainings_are_taken_over(micro_folder: Path, results: Path) -> None:
    plain = made(asked(micro_folder, results))
    key = plain.identity.training
    assert find_trained(results, key) == plain.folder
    assert find_trained(results / ABLATIONS_FOLDER, key) == plain.folder
    trained = read_json(plain.work / "train.json")
    write_json(plain.work / "train.json", trained | {"sha256": "0" * 64})
    assert find_trained(results, key) is None, "not the weights that training wrote"
    write_json(plain.work / "train.json", trained)
    assert find_trained(results, training_of(asked(micro_folder, results), seed=1)) is None
    weights = plain.folder / "work" / "adapter.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert find_trained(results, key) is None, "weights that are not what training wrote"
    weights.unlink()
    assert find_trained(results, key) is None


@pytest.mark.slow
def test_learned_layer_weights_are_kept(micro_folder: Path, tmp_path: Path) -> None:
    learned = made(asked(micro_folder, tmp_path), method="bps-learned")
    learned.all()
    weights = read_json(learned.folder / "items.json")["layer_weights"]
    assert [slot for slot, _, _ in weights] == [1, 2, 4, 5, 7, 8, 10, 11, 12]
    assert [start for _, start, _ in weights] == [16, 16, 8, 8, 4, 4, 2, 2, 16]
    assert all(start != now for _, start, now in weights)
    afresh = made(asked(micro_folder, tmp_path), method="bps-learned")
    assert afresh._learned() == {"layer_weights": weights}, "a stage alone reads them from the weights"


@pytest.mark.parametrize("variant", ABLATIONS["schedule"].variants, ids=lambda v: v.name)
def test_constant_layer_weights_are_where_they_started(micro_base: Base, variant: Variant) -> None:
    """To the last bit, although 11.3137 is no number of single precision: else they count as learned."""
    denoiser = registry.load("method", "bps").build(
        micro_base, registry.load("task", "sketch"), **variant.settings("sketch")
    )
    weights = denoiser.layer_weights()
    assert len(weights) == 9 and all(start == now for start, now in weights.values())


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """Runs of a grid happen here, without a second interpreter's start; returns what was started."""
    from bench import grid

    started: list[Sequence[str]] = []

    class Ended:
        def __init__(self, words: Sequence[str]) -> None:
            started.append(words)
            self.code = int(bench_command(*words).exit_code)

        def poll(self) -> int:
            return self.code

        def last_line(self) -> str:
            return "see above"

    monkeypatch.setattr(grid, "starter", lambda jobs, **how: Ended)
    return started


def plan(base: Path, results: Path, ablation: Ablation = SMALL, **changes: Any) -> list[Planned]:
    return plan_ablation(ablation, asked(base, results, **changes), tasks=("sketch",), seeds=(0,))


@pytest.mark.slow
def test_a_plan_uses_what_exists_and_parts_protocols(
    micro_folder: Path, results: Path, in_process: list[Sequence[str]]
) -> None:
    planned = plan(micro_folder, results)
    assert [one.state for one in planned] == [EXISTS, MISSING, MISSING]
    few = planned[2].folder
    assert planned[1].folder.parent == results and few.parent == results / ABLATIONS_FOLDER
    said = plan_text(SMALL, planned, results=results)
    assert "1 exists, 2 missing; about" in said and "unknown" not in said
    nowhere = plan_text(SMALL, planned, results=results / "elsewhere")
    assert "2 of unknown length" in nowhere
    records, missing, record = records_of_paces(results), planned[1].spec, load_record(planned[0].folder)
    cost, items = record.cost, record.splits.eval.n
    assert cost.sample_seconds_per_image and cost.score_seconds and cost.train_images_per_second
    still = items * cost.sample_seconds_per_image + cost.score_seconds
    assert seconds_of(missing, records, items=items, trains=False) == pytest.approx(still)
    training = 48 / cost.train_images_per_second
    assert seconds_of(missing, records, items=items) == pytest.approx(training + still)
    on_gpus = replace(missing, device="cuda")
    assert seconds_of(on_gpus, records, items=items) is None, "a CPU's record says nothing of a GPU"

    done = do_ablation(planned, hooks=Hooks(), say=len)
    assert len(in_process) == 2 and all(o.record is not None for o in done)
    assert load_record(few).changes == {"train_items": 5}
    assert "shuffled" not in load_record(few).rows
    again = plan(micro_folder, results)
    assert [(one.state, one.folder) for one in again] == [(EXISTS, one.folder) for one in planned]
    shutil.move(few, results / few.name)  # as if made by hand with `bench run --train-items`
    assert [one.state for one in plan(micro_folder, results)] == [EXISTS] * 3


def test_a_failing_cell_does_not_stop_an_ablation(
    micro_folder: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench import ablations, grid

    class Failed:
        def poll(self) -> int:
            return 2

        def last_line(self) -> str:
            return "see above"

    started: list[Sequence[str]] = []
    monkeypatch.setattr(grid, "starter", lambda jobs, **how: lambda words: started.append(words) or Failed())
    monkeypatch.setitem(ablations.ABLATIONS, "small", SMALL)  # type: ignore[arg-type]
    where = ("--suite", "micro", "--base", micro_folder, "--results", results, "--device", "cpu")
    words = ("ablate", "small", *where, "--seeds", "0", "--budget", "quick")
    said = bench_command(*words, "--plan")
    assert said.exit_code == 0 and not started, said.output
    assert "1 exists, 2 missing" in said.stdout
    done = bench_command(*words)
    assert done.exit_code == 1 and len(started) == 2
    assert "FAILED free prior, sketch, seed 0: failed with exit code 2" in done.stderr
    assert "0 of 2 runs have a record" in done.stderr and "again: bench run" in done.stderr
    assert "Nothing to compare yet" in done.stdout
    assert bench_command("ablate", "smal").exit_code == 2


def test_one_training_serves_all_guidances(
    micro_folder: Path, results: Path, in_process: list[Sequence[str]]
) -> None:
    variants = (*ABLATIONS["guidance"].variants[:3], Variant(name="own", guidance=2.5))
    few = replace(ABLATIONS["guidance"], variants=variants)
    planned = plan(micro_folder, results, few)
    assert len(planned) == 3, "a number that is the suite's own is its reference"
    assert [one.state for one in planned] == [EXISTS, MISSING, MISSING]
    assert not any(one.trains for one in planned), "the reference still holds its weights"
    (planned[0].folder / "work" / "adapter.safetensors").unlink()
    planned = plan(micro_folder, results, few)
    assert [one.trains for one in planned] == [False, True, False]
    outcomes = do_ablation(planned, hooks=Hooks(), say=len, jobs=2)
    origins = [o.record.trained_in for o in outcomes if o.record is not None]
    assert origins == [None, planned[1].folder.name]
    started = [make_config(read_config(words[-1])) for words in in_process]
    assert [config.guidance for config in started] == [1.0, 2.0]
    weights = {sha256_file(one.folder / "work" / "adapter.safetensors") for one in planned[1:]}
    assert len(weights) == 1


def test_a_learning_curve_has_the_gains_of_its_first_seed(micro_folder: Path, tmp_path: Path) -> None:
    curve, config = ABLATIONS["budget"], micro(micro_folder, tmp_path, budget="quick")
    few = curve.only(["lora-concat", "bps"])
    assert {v.method for v in few.variants} == {"lora-concat", "bps"} and len(few.variants) == 15
    planned = plan_ablation(few, config, tasks=("sketch",), seeds=(3, 0))
    sets = {entry.spec.config.seed: entry.spec.config.wrong_conditions for entry in planned}
    assert sets == {3: ("shuffled", "blank"), 0: ()}
    others = [
        *plan_ablation(few, replace(config, shuffled=False), tasks=("sketch",), seeds=(3,)),
        *plan_ablation(ABLATIONS["sites"], config, tasks=("sketch",), seeds=(3,)),
    ]
    assert not any(entry.spec.config.wrong_conditions for entry in others)
    with pytest.raises(BenchError, match="controlnet"):
        curve.only(["text-only"])


def test_one_training_without_the_condition_serves_every_task(micro_folder: Path, tmp_path: Path) -> None:
    """It ends with the bits that another task's would have ended with; methods that see it share none."""
    little = {"limit": 10, "train_images": 16, "train_items": 8}
    config = asked(micro_folder, tmp_path / "shared", method="style-only", **little)
    first, second = made(config), made(config, task="drawing")
    assert first.identity.training == second.identity.training and first.id != second.id
    assert training_of(config, method="bps") != training_of(config, method="bps", task="drawing")
    first.train()
    assert second.train().trained_in == first.id
    alone = made(config, task="drawing", results=tmp_path / "alone")
    assert alone.train().trained_in is None
    weights = [sha256_file(run.folder / "work" / "adapter.safetensors") for run in (second, alone)]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_what_is_forgotten_is_told_beside_the_base_and_its_adapted_likeness(
    micro_folder: Path, tmp_path: Path
) -> None:
    """Text alone forgets nothing; a base adapted to the style goes on saying what it has seen."""
    base = Path(shutil.copytree(micro_folder, tmp_path / "base"))
    little = {"limit": 10, "train_images": 16, "train_items": 8, "sampling_steps": 1, "forgetting": True}
    config = asked(base, tmp_path / "results", **little)
    with pytest.raises(BenchError, match="--forgetting"):
        made(config)
    names = [f"toy: {shown}" for shown in ("red heart", "face", "blue car")]
    pictures = np.zeros((len(names), 64, 64, 3), np.uint8)
    write_seen(base, base=find_snapshot(base).digest, pictures=pictures, names=names, facts={"about": "toys"})
    text_only, adapted = made(config, method="text-only"), made(config, method="style-only")
    still, moved = text_only.all(), adapted.all()
    assert still.rows[OWN_STYLES]["cosine"].value == pytest.approx(1.0)
    assert still.rows[OWN_STYLES]["fd"].value == pytest.approx(0.0, abs=1e-3)
    assert 0 < moved.rows[OWN_STYLES]["cosine"].value < 1 - 1e-6
    row = build_table([load_run(adapted.folder)]).own("method")[0]
    told = {column.metric: cell.value for column, cell in row.cells.items() if column.is_forgetting}
    assert told["cosine_forgotten"] == pytest.approx(moved.rows[OWN_STYLES]["cosine"].value)
    assert len(build_table([load_run(adapted.folder)]).rows) == 3, "no row of its own beside references"

    likeness = tmp_path / "adapted"
    arguments = ("export", adapted.folder, likeness, "--with-base", "--base", base)
    assert bench_command(*arguments).exit_code == 0
    few = replace(SMALL, variants=SMALL.variants[:2])
    planned = plan_ablation(few, replace(config, base=likeness), tasks=("sketch",), seeds=(0,))
    (first, _) = (Run(entry.spec) for entry in planned)
    assert first.seen.captions[:3] == tuple(names) and len(first.seen.captions) == 3 + 8
    assert all(name.startswith("openmoji: ") for name in first.seen.captions[3:])
    assert first.identity.protocol.base != adapted.identity.protocol.base
    assert first.leaks.pretraining.status != "unknown"


def test_what_cannot_be_is_said_and_not_run(micro_folder: Path, tmp_path: Path) -> None:
    much = replace(SMALL, variants=(*SMALL.variants, Variant(name="all", train_items=10**6)))
    planned = plan(micro_folder, tmp_path, much)
    assert planned[-1].state == CANNOT and "--train-items" in planned[-1].why
    assert "1 cannot be" in plan_text(much, planned, results=tmp_path)
    assert planned[-1].identity is None
    assert not any("all" in o.name for o in do_ablation(planned[-1:], hooks=Hooks(), say=len))


def test_the_schedule_of_a_task_is_the_releases() -> None:
    for task in EMOJI.tasks:
        assert Variant(name="x").settings(task)["schedule"] == released(task)
