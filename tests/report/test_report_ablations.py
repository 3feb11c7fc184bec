"""Ablations in reports: only declared differences, words never above intervals, figures and page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from PIL import Image

from bench.ablations import ABLATIONS, Variant
from bench.content import read_json, write_json
from bench.metrics.intervals import Interval
from bench.packed import load_run
from bench.record import load_record
from bench.reporting import load_runs, make_report
from bench.reporting.ablation_figures import moved, weights_figure
from bench.reporting.ablation_tables import (
    ablation_grid,
    ablation_sentences,
    ablation_summary,
    ablation_text,
    tidy_ablation,
)
from bench.reporting.ablations import AblationTable, Line, build_ablations, in_ablations
from bench.reporting.names import command_line
from bench.types import BenchError
from tests.report.ablation_runs import (
    both,
    only_table,
    plausible,
    protocol_of,
    write_all,
    write_variant,
)

PRIOR, DATA = ABLATIONS["prior"], ABLATIONS["data"]
FROZEN, FREE, NONE = PRIOR.variants[:3]


def of(table: AblationTable, name: str) -> Line:
    (line,) = [line for line in table.lines if line.row.name == name]
    return line


@pytest.fixture(scope="module")
def every(build: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All ablations with two seeds, and a report of them; read only."""
    results = tmp_path_factory.mktemp("every")
    write_all(build, results)
    make_report(results, results / "report", readme=results / "README.md")
    return results


def test_differences_are_paired_with_the_papers_setting(build: Any, results: Path) -> None:
    for seed in (0, 1, 2):
        write_variant(build, results, FROZEN, {"fd": 100.0 + seed, "sketch_f1": 0.9}, seed=seed)
        write_variant(build, results, NONE, {"fd": 131.0 + seed, "sketch_f1": 0.8}, seed=seed)
    table = only_table(results)
    assert table.ablation is PRIOR and table.missing[0] == "free prior"
    assert of(table, "frozen prior").is_reference and not of(table, "frozen prior").differences
    found = {c.metric: d for c, d in of(table, "no prior").differences.items()}
    assert found["fd"].interval.value == pytest.approx(31.0)
    assert found["fd"].interval.low < 31.0 < found["fd"].interval.high
    assert found["fd"].first_seeds == found["fd"].second_seeds == 3 and found["fd"].agree
    assert found["sketch_f1"].interval.value == pytest.approx(-0.1)


def test_seeds_that_only_one_side_has_do_not_count(build: Any, results: Path) -> None:
    for seed, fd in ((0, 100.0), (1, 200.0)):
        write_variant(build, results, FROZEN, {"fd": fd}, seed=seed)
    write_variant(build, results, NONE, {"fd": 131.0}, seed=0)
    (difference,) = of(only_table(results), "no prior").differences.values()
    assert difference.interval.value == pytest.approx(31.0) and difference.first_seeds == 1
    write_variant(build, results, FREE, {"fd": 90.0}, seed=5)
    assert not of(only_table(results), "free prior").differences, "no seed in common"


@pytest.mark.parametrize(
    "change",
    [
        {"protocol": {**protocol_of(NONE), "eval_side": "val"}},
        {"protocol": {**protocol_of(NONE), "sampler": {"name": "dpm++", "steps": 11, "guidance": 2.5}}},
        {"options": {**NONE.settings, "schedule": "uniform", "learning_rate": 1e-3}},
    ],
)
def test_what_differs_in_anything_undeclared_is_in_no_table(
    build: Any, results: Path, change: dict[str, Any]
) -> None:
    write_variant(build, results, FROZEN, {"fd": 100.0})
    write_variant(build, results, NONE, {"fd": 131.0}, **change)
    assert build_ablations(both(results)) == []


def test_other_learning_rates_are_left_out_and_said(build: Any, results: Path) -> None:
    write_variant(build, results, FROZEN, {"fd": 100.0})
    write_variant(build, results, NONE, {"fd": 131.0})
    write_variant(build, results, FREE, {"fd": 50.0}, rate=1e-2)
    table = only_table(results)
    assert [line.row.name for line in table.lines] == ["frozen prior", "no prior"]
    assert any("1 runs of BPS at other learning rates than 0.001" in note for note in table.notes)


def test_a_table_needs_its_reference_and_data_needs_two_numbers(build: Any, results: Path) -> None:
    for method in ("bps", "controlnet"):
        for items in (None, 40):
            variant = next(v for v in DATA.variants if v.method == method and v.train_items == items)
            assert build_ablations(both(results) if any(results.iterdir()) else []) == []
            write_variant(build, results, variant, {"fd": 100.0}, budget="short")
    table = only_table(results)
    assert table.ablation is DATA
    assert [(x.row.name, x.train_items) for x in table.lines] == [
        ("BPS", 40),
        ("ControlNet", 40),
        ("BPS", 2900),
        ("ControlNet", 2900),
    ]


def test_the_suites_own_number_is_its_reference_once(build: Any, results: Path) -> None:
    steps = ABLATIONS["steps"]
    for variant in steps.variants:
        write_variant(build, results, variant, {"fd": 100.0 - (variant.steps or 10)})
    (table,) = [t for t in build_ablations(both(results)) if t.ablation is steps]
    assert [line.row.name for line in table.lines] == [
        "the suite's sampling (10 steps)",
        "5-step sampling",
        "20-step sampling",
        "50-step sampling",
    ]
    assert table.missing == ()


def changed(line: Line, *, low: float, value: float, high: float, agree: bool | None = True) -> Line:
    (column, difference), *_ = line.differences.items()
    interval = Interval(value=value, low=low, high=high)
    return replace(line, differences={column: replace(difference, interval=interval, agree=agree)})


def test_words_are_never_stronger_than_the_interval(build: Any, results: Path) -> None:
    for variant, fd in ((FROZEN, 100.0), (NONE, 131.0)):
        few = replace(variant, train_items=160)
        write_variant(build, results, few, {"fd": fd}, seed=0)
    table = only_table(results)
    line = of(table, "no prior")

    def said(**interval: Any) -> str:
        other = replace(table, lines=(table.lines[0], changed(line, **interval)))
        (sentence,), (short,) = ablation_sentences(other), ablation_summary(other, metric="fd")
        assert short.startswith("frozen prior on FD (EfficientNet-Lite0) at 160 training items: ")
        return f"{sentence} {short.partition(': ')[2]}"

    words = said(low=27.0, value=31.0, high=35.0, agree=None)
    assert words.startswith(
        "Frozen prior beats no prior by 31.0 ± 4.0 FD (EfficientNet-Lite0) at 160 training items "
        "(40 items, one seed)."
    )
    assert words.endswith("beats no prior (31.0 ± 4.0).")
    words = said(low=-35.0, value=-31.0, high=-27.0)
    assert words.startswith("No prior beats frozen prior by 31.0 ± 4.0 FD")
    assert words.endswith("falls behind no prior (31.0 ± 4.0).")
    words = said(low=-1.0, value=3.0, high=7.0)
    assert words.startswith("No difference between frozen prior and no prior could be shown in FD")
    assert "beats" not in words and "no difference could be shown to no prior (3.0 ± 4.0)" in words
    assert "beats" not in said(low=0.0, value=3.0, high=7.0)
    assert "by 31.0 [30.5, 38.0]" in said(low=30.5, value=31.0, high=38.0)
    words = said(low=27.0, value=31.0, high=35.0, agree=False)
    assert words.startswith("On the mean over seeds frozen prior beats no prior")
    assert "but single seeds do not agree." in words and "do not agree, beats no prior" in words


def test_text_forms_hold_the_same_numbers(every: Path) -> None:
    (table,) = [t for t in build_ablations(both(every)) if t.ablation is PRIOR and t.task == "sketch"]
    grid, tidy = ablation_grid(table), tidy_ablation(table)
    assert len(grid.body) == 6 and grid.rules == (3,)
    assert all(len(line) == len(grid.header) == len(grid.groups) for line in grid.body)
    for words in (
        "40 evaluation items",
        "seeds 0, 1",
        "EfficientNet-Lite0",
        "(train items 160)",
        "Held fixed",
    ):
        assert words in grid.caption
    assert {line.record.protocol_hash[:12] in grid.caption for line in table.lines} == {True}
    known = tidy[(tidy.variant == "no prior") & (tidy.metric == "fd") & (tidy.train_items == 160)]
    cell = next(
        c
        for line in grid.body
        if line[0].main == "no prior" and line[1].main == "160"
        for c, g in zip(line, grid.groups, strict=True)
        if g.startswith("FD") and c.main.startswith("+")
    )
    assert float(cell.main) == pytest.approx(known.difference.item(), abs=0.01)
    assert "minus reference" in ablation_text(table) and "160 training items" in ablation_text(table)


def test_variants_stand_in_the_csv_of_their_task_and_in_no_table_of_methods(every: Path) -> None:
    moved = in_ablations(build_ablations(both(every)))
    assert moved
    report = every / "report"
    names = list(pandas.read_csv(report / "table-emoji-sketch.csv")["row"].unique())
    varied = [name for name in names if name.startswith("BPS (")]
    assert {"BPS (prior=none)", "BPS (schedule=uniform)"} <= set(varied)
    assert "BPS (schedule=flatter 16-11.3-8-5.7)" in varied, "a list as its ablation calls it"
    assert len(varied) == len(set(varied)), "told apart"
    assert names.index("BPS") < names.index(varied[0])
    assert names[names.index(varied[0]) :] == varied, "last"
    for end in ("md", "tex"):
        assert "BPS (" not in (report / f"table-emoji-sketch.{end}").read_text()
    comparison = (report / "comparison-emoji.md").read_text()
    assert "prior=" not in comparison
    assert "Variants of BPS stand in the ablations of sketch, segmentation" in comparison
    assert "prior=" not in (report / "differences-emoji-sketch.csv").read_text()
    costs = (report / "cost-emoji-sketch.csv").read_text()
    assert "BPS (prior=none)" in costs
    assert "Ablation: schedule" in (report / "report.md").read_text()


def test_every_ablation_has_its_files_and_figures(every: Path) -> None:
    report = every / "report"
    for name, ablation in ABLATIONS.items():
        for task in ablation.tasks:
            stem = f"ablation-{name}-emoji-{task}"
            for end in ("md", "tex", "csv", "png", "pdf"):
                assert (report / f"{stem}.{end}").stat().st_size > 500
            assert (report / f"{stem}-curves.png").exists() == (not ablation.axis)
    assert (report / "ablation-schedule-emoji-sketch-weights.pdf").exists()
    with Image.open(report / "ablation-data-emoji-sketch.png") as opened:
        assert np.asarray(opened).std() > 5, "something is drawn"


def test_links_of_the_published_page_hold(every: Path) -> None:
    text = (every / "README.md").read_text()
    links = re.findall(r"\]\((?!http)([^)]+)\)", text)
    assert links and all((every / link).is_file() for link in links)
    shown = {(every / link).name: (every / link).stat().st_size for link in links}
    assert all(size < (every / "report" / name).stat().st_size for name, size in shown.items())


def test_the_report_is_the_same_twice(build: Any, results: Path, tmp_path: Path) -> None:
    for variant in (FROZEN, NONE):
        write_variant(build, results, variant, plausible(variant, 0))
    pages = []
    for place in ("one", "two"):
        folder = tmp_path / place / "results"
        made = make_report(results, folder / "report", readme=folder / "README.md")
        pages.append({path.name: path.read_bytes() for path in made})
    assert pages[0] == pages[1] and "README.md" in pages[0]


def test_readme_tells_what_was_asked_and_how_to_make_it(every: Path) -> None:
    text = (every / "README.md").read_text()
    for words in (
        "## emoji / sketch",
        "### Ablation: prior on emoji / sketch",
        "10.49",
        "## What it cost",
        "bench ablate data --task segmentation --seeds 0,1",
        "--train-items 160",
        "--guidance 7.5",
        "bench report --results",
    ):
        assert words in text, words
    assert "Frozen prior beats no prior by" in text


def test_a_folder_of_ablations_alone_has_a_report(build: Any, results: Path, tmp_path: Path) -> None:
    for variant in (FROZEN, NONE):
        write_variant(build, results, replace(variant, train_items=160), plausible(variant, 0))
    assert load_runs(results) == []
    names = {path.name for path in make_report(results, tmp_path)}
    assert {"ablation-prior-emoji-sketch.md", "index.html", "report.md"} <= names


def test_the_command_that_makes_a_varied_run_again(build: Any, results: Path) -> None:
    run = write_variant(build, results, Variant(name="x", train_items=10, steps=50), {"fd": 1.0})
    words = command_line(run.record)
    assert "--budget standard " in words and "--train-items 10" in words and "--sampling-steps 50" in words


def test_what_was_changed_survives_a_round_trip_and_older_records_say_nothing(
    build: Any, results: Path
) -> None:
    run = write_variant(build, results, Variant(name="x", guidance=4.0), {"fd": 1.0}, trained_in="y")
    assert run.folder is not None
    record = load_record(run.folder)
    assert record.changes == {"guidance": 4.0} and record.trained_in == "y"
    plain = write_variant(build, results, FROZEN, {"fd": 1.0})
    assert plain.folder is not None
    assert not {"changes", "trained_in"} & set(read_json(plain.folder / "record.json"))


@pytest.mark.parametrize("weights", [[[1, 2.0]], [[1, 2.0, "x"]], 3])
def test_layer_weights_are_read_strictly(build: Any, results: Path, weights: Any) -> None:
    run = write_variant(build, results, FROZEN, {"fd": 1.0})
    assert run.folder is not None and run.items is not None and run.items.layer_weights == ()
    path = run.folder / "items.json"
    write_json(path, {**read_json(path), "layer_weights": weights})
    with pytest.raises(BenchError, match="layer_weights"):
        load_run(run.folder)


def test_rounding_of_fixed_layer_weights_is_not_called_learned(build: Any, results: Path) -> None:
    by_name = {variant.name: variant for variant in ABLATIONS["schedule"].variants}
    for name, trained in (
        ("head-heavy 16-8-4-2", None),
        ("flatter 16-11.3-8-5.7", 11.313699722290039),
        ("learned", 11.0),
    ):
        run = write_variant(build, results, by_name[name], {"fd": 1.0})
        assert run.folder is not None
        path = run.folder / "items.json"
        if trained is not None:
            weights = [[4, 11.3137, trained], [12, 16.0, 16.0]]
            write_json(path, {**read_json(path), "layer_weights": weights})
    table = only_table(results)
    assert [r.record.options["schedule"] for r in table.runs if moved(r) > 0] == ["learned"]
    fixed = replace(table, lines=tuple(li for li in table.lines if li.row.name != "learned"))
    assert len(fixed.lines) == 2 and weights_figure(fixed, results / "weights.png") is None
    drawn = weights_figure(table, results / "weights.png")
    assert drawn is not None and drawn.exists()


def page_data(folder: Path) -> Any:
    text = (folder / "index.html").read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found is not None
    return json.loads(found[1])


def test_the_page_holds_each_ablation_with_its_figure(every: Path) -> None:
    made = page_data(every / "report")["ablations"]
    assert len(made) == sum(len(a.tasks) for a in ABLATIONS.values())
    for one in made:
        assert all(len(line) == len(one["heads"]) for line in one["rows"]) and one["said"]
        assert all(f["source"].startswith("data:image/webp;base64,") for f in one["figures"])
        assert one["figures"] and all((every / "report" / file).is_file() for file in one["files"])
    assert (every / "report" / "index.html").stat().st_size < 10_000_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    import shutil

    webdriver = pytest.importorskip("selenium.webdriver")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (program and driver):
        pytest.skip("chromium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


def test_ablations_follow_the_choice_of_a_task_in_a_browser(browser: Any, every: Path) -> None:
    browser.get((every / "report" / "index.html").as_uri())
    script = "return [...document.querySelectorAll('section')].filter(s => !s.hidden).map(s => s.ariaLabel)"
    shown = browser.execute_script(script)
    assert "Ablation: prior on emoji / segmentation" in shown and len(shown) == 10
    browser.execute_script("const i = document.querySelectorAll('[name=task]')[1]; i.click()")
    task = browser.execute_script(script)
    assert task[0] == "sketch" and all("sketch" in name for name in task) and len(task) == 7
    decoded = "const done = arguments[0]; Promise.all([...document.images].map(i => i.decode())).then(done)"
    browser.execute_async_script(decoded)
    widths = browser.execute_script("return [...document.querySelectorAll('.plot')].map(i => i.naturalWidth)")
    assert widths and min(widths) > 400
    assert browser.get_log("browser") == []
