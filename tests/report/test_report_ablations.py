"""Ablations out of records: only declared differences, paired with the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bench.ablations import ABLATIONS, Variant
from bench.content import digest_json
from bench.packed import Run
from bench.reporting.compare import (
    AblationTable,
    ablation_sentences,
    ablation_summary,
    build_ablations,
    in_ablations,
)
from bench.reporting.frame import Row
from bench.reporting.tables import ablation_command, ablation_text, main_grid, tidy
from tests.report.small import PROTOCOL, made, spread

PRIOR, DATA, STEPS = (ABLATIONS[name] for name in ("prior", "data", "steps"))
FROZEN, FREE, NONE = PRIOR.variants[:3]


def run(variant: Variant, fd: float, *, seed: int = 0, rate: float = 1e-3, **more: Any) -> Run:
    """A run of a variant under the protocol that it declares."""
    budget, sampler = dict(PROTOCOL["budget"]), dict(PROTOCOL["sampler"])
    if variant.train_images is not None:
        images = variant.train_images
        budget |= {"name": f"{budget['name']}-{images}images", "train_images": images}
    if variant.train_items is not None:
        budget |= {"name": f"{budget['name']}-{variant.train_items}", "train_items": variant.train_items}
    changes = {key: x for key in ("guidance", "steps") if (x := getattr(variant, key)) is not None}
    protocol = {"budget": budget, "sampler": sampler | changes}
    fields = {
        "protocol": protocol,
        "protocol_hash": digest_json(protocol),
        "options": {**variant.settings("sketch"), "learning_rate": rate},
        "changes": changes | ({"train_items": variant.train_items} if variant.train_items else {}),
        "budget": budget["name"],
        "run_id": digest_json([variant.settings("sketch"), rate, protocol, variant.method, seed])[:12],
        "train_items": variant.train_items,
    }
    replicates = {"fd": [x + fd for x in spread(0.0, seed=seed, width=0.001)]}
    return made(variant.method, {"fd": fd}, seed=seed, replicates=replicates, **{**fields, **more})


def only_table(*runs: Run) -> AblationTable:
    (table,) = build_ablations(runs)
    return table


def of(table: AblationTable, name: str) -> Row:
    (row,) = [row for row in table.rows if row.name == name]
    return row


def test_differences_are_paired_with_the_papers_setting_at_common_seeds() -> None:
    runs = [run(FROZEN, 100.0 + seed, seed=seed) for seed in (0, 1, 2)]
    table = only_table(*runs, run(NONE, 131.0), run(NONE, 132.0, seed=1), run(FREE, 90.0, seed=5))
    assert table.ablation is PRIOR and "free prior (160)" in table.missing
    assert table.is_reference(of(table, "frozen prior")) and not of(table, "frozen prior").differences
    (found,) = of(table, "no prior").differences.values()
    assert found.interval.value == pytest.approx(31.0)
    assert found.first_seeds == found.second_seeds == 2 and found.clear
    assert not of(table, "free prior").differences, "no seed in common"


@pytest.mark.parametrize(
    "change",
    [
        {"protocol": {**PROTOCOL, "eval_side": "val"}},
        {"options": {**NONE.settings("sketch"), "schedule": "uniform"}},
    ],
)
def test_what_differs_in_anything_undeclared_is_in_no_table(change: dict[str, Any]) -> None:
    assert build_ablations([run(FROZEN, 100.0), run(NONE, 131.0, **change)]) == []


def test_other_learning_rates_are_left_out_and_said() -> None:
    others = [run(NONE, 50.0, seed=seed, rate=1e-2) for seed in (0, 1)]
    table = only_table(run(FROZEN, 100.0), run(NONE, 131.0), *others, run(FREE, 90.0))
    assert [(row.name, len(row.runs)) for row in table.rows] == [
        ("frozen prior", 1),
        ("free prior", 1),
        ("no prior", 2),
    ]
    assert any("1 runs of no prior at other learning rates than 0.01" in note for note in table.notes)
    assert any("of BPS: frozen prior 0.001, free prior 0.001, no prior 0.01" in note for note in table.notes)


def test_a_learning_curve_compares_at_equally_many_images() -> None:
    budget = ABLATIONS["budget"]
    wanted = [
        v for v in budget.variants if v.name in {"bps", "controlnet"} and v.train_images in {None, 6400}
    ]
    (table,) = build_ablations([run(v, 100.0 + (v.name != "bps")) for v in wanted], only=budget)
    assert [(row.name, row.setting("train_images")) for row in table.rows] == [
        ("BPS", PROTOCOL["budget"]["train_images"]),
        ("ControlNet", PROTOCOL["budget"]["train_images"]),
        ("BPS (6,400 images)", 6400),
        ("ControlNet (6,400 images)", 6400),
    ]
    differences = [d.interval.value for row in table.rows for d in row.differences.values()]
    assert differences == pytest.approx([1.0, 1.0])


def test_a_table_needs_its_reference_and_data_needs_two_numbers_of_items() -> None:
    wanted = [v for v in DATA.variants if v.method in {"bps", "controlnet"} and v.train_items in {None, 40}]
    runs = [run(variant, 100.0) for variant in wanted]
    assert build_ablations(runs[:1]) == [] and build_ablations(runs[:2], only=DATA) == []
    (table,) = build_ablations(runs, only=DATA)
    assert [(row.label, row.train_items) for row in table.rows] == [
        ("BPS", 40),
        ("ControlNet", 40),
        ("BPS", 2900),
        ("ControlNet", 2900),
    ]
    assert len(main_grid(table).rules) == 1 and "training items" in main_grid(table).header


def test_random_choices_of_few_items_stand_in_one_row() -> None:
    """Their difference counts in its interval like that of seeds; those not recorded are left out."""

    def few(method: str, fd: float, *, seed: int, choice: int) -> Run:
        (variant,) = [v for v in DATA.variants if (v.method, v.train_items) == (method, 10)]
        made_one = run(variant, fd, seed=seed).record
        budget = {**made_one.protocol["budget"]}
        budget |= {"name": f"{budget['name']}-choice{choice}", "train_subset": choice} if choice else {}
        protocol = {**made_one.protocol, "budget": budget}
        changes = {"train_items": 10} | ({"train_subset": choice} if choice else {})
        hashes = {"protocol_hash": digest_json(protocol), "run_id": f"{method}-{choice}-{seed}"}
        return run(variant, fd, seed=seed, protocol=protocol, changes=changes, **hashes)

    wanted = [v for v in DATA.variants if v.method in ("bps", "controlnet") and v.train_items is None]
    plain = [run(variant, 100.0, seed=seed) for variant in wanted for seed in (0, 1)]
    fd = {"bps": (90.0, 96.0), "controlnet": (110.0, 110.0)}
    runs = [
        few(method, fd[method][choice] + seed, seed=seed, choice=choice)
        for method in fd
        for choice in (0, 1)
        for seed in (0, 1)
    ]
    (table,) = build_ablations([*plain, *runs], only=DATA)
    row = of(table, "BPS (10 items)")
    (cell,) = row.cells.values()
    assert len(row.runs) == 4 and row.seeds == (0, 1) and cell.value == pytest.approx(93.5)
    (found,) = of(table, "ControlNet (10 items)").differences.values()
    assert found.interval.value == pytest.approx(17.0) and found.first_seeds == 2
    (one_choice,) = build_ablations([*plain, *(r for r in runs if "-0-" in r.record.run_id)], only=DATA)
    (sure,) = of(one_choice, "ControlNet (10 items)").differences.values()
    assert sure.interval.value == pytest.approx(20.0)
    assert sure.interval.high - sure.interval.low < found.interval.high - found.interval.low


def test_the_suites_own_number_is_its_reference_once() -> None:
    (table,) = build_ablations([run(v, 100.0 - (v.steps or 10)) for v in STEPS.variants], only=STEPS)
    assert [row.name for row in table.rows] == [
        "the suite's sampling (10 steps)",
        "5-step sampling",
        "20-step sampling",
        "50-step sampling",
    ]
    assert table.missing == ()


def test_words_name_the_reference_first_and_the_number_of_items() -> None:
    few = [replace(variant, train_items=160) for variant in (FROZEN, NONE)]
    table = only_table(run(few[0], 100.0), run(few[1], 131.0))
    (sentence,), (summary,) = ablation_sentences(table), ablation_summary(table)
    assert sentence.startswith("frozen prior (160 items) beats no prior (160 items) on FD")
    assert (
        summary.startswith("frozen prior (160 items) on FD")
        and "beats no prior (160 items) by 31.0" in summary
    )


def test_text_forms_hold_the_same_numbers() -> None:
    table = only_table(run(FROZEN, 100.0), run(NONE, 131.0))
    grid, lines = main_grid(table), tidy(table).set_index("variant")
    assert all(len(line) == len(grid.header) == len(grid.groups) for line in grid.body)
    assert grid.body[1][-1].main == "+31.0000" or float(grid.body[1][-1].main) == pytest.approx(31.0)
    assert grid.body[0][-1].main == "reference"
    assert (
        lines.loc["no prior", "difference"] == pytest.approx(31.0) and lines.loc["frozen prior", "reference"]
    )
    for words in ("40 evaluation items", "seeds 0", "Held fixed", "Not recorded: free prior"):
        assert words in grid.caption
    assert "minus reference" in ablation_text(table)
    assert ablation_command(table) == "bench ablate prior --task sketch --seeds 0"


def test_variants_with_other_options_than_the_papers_leave_the_tables_of_methods() -> None:
    runs = [run(FROZEN, 100.0), run(NONE, 131.0)]
    assert in_ablations(build_ablations(runs)) == {runs[1].record.run_id}


def test_where_the_reference_is_not_the_papers_own_both_stay_among_the_methods() -> None:
    """On layout the paper's schedule is uniform, and the schedule ablation compares with head-heavy."""
    head_heavy, uniform = ABLATIONS["schedule"].variants[:2]
    runs = [
        run(v, 100.0, task="layout", options=v.settings("layout"), run_id=v.name)
        for v in (head_heavy, uniform)
    ]
    (table,) = build_ablations(runs)
    assert table.is_reference(of(table, head_heavy.name)) and not table.has_own
    assert in_ablations([table]) == set()
