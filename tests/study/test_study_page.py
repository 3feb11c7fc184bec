"""The page: pictures and codes in it, names of methods out of it; the key says what they are."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from bench.sampling import show_condition
from bench.study import NOISE, OTHER, TARGET, read_key, write_key
from bench.study.page import Design, Lazy, Source, Study, build_study, load_source, make_study
from bench.types import BenchError
from cli import app


def data_of(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="study">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found[1])


def pixels(uri: str) -> np.ndarray:
    head, body = uri.split(",", 1)
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))


def test_codes_resolve_to_the_very_pictures(source: Source, study: Study) -> None:
    data = data_of(study.page)
    rows = {item: row for row, item in enumerate(source.ids)}
    seen = set()
    for question in data["questions"]:
        meant = study.key.questions[question["code"]]
        assert list(meant.sides) == question["sides"]
        row = rows[meant.item]
        assert question["caption"] == source.examples[row].caption
        shown = pixels(data["pictures"][question["condition"]])
        assert np.array_equal(shown, show_condition(source.conditions[row]))
        for code, name in meant.sides.items():
            seen.add(name)
            picture = pixels(data["pictures"][code])
            target = source.examples[row].image
            if name in source.samples:
                assert np.array_equal(picture, source.samples[name][row])
            elif name == TARGET:
                assert np.array_equal(picture, target)
            else:
                assert picture.shape == target.shape and (picture != target).mean() > 0.01
    assert seen == {*source.samples, TARGET, OTHER, NOISE}


def test_nothing_in_the_page_names_a_method_or_a_check(source: Source, study: Study) -> None:
    text = re.sub(r"data:image/png;base64,[\w+/=]+", "", study.page)
    for name in (*source.samples, *(r.run_id for r in source.records.values()), TARGET, "noise"):
        assert not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text), name
    assert not re.search(r"https?://(?!openmoji\.org)|\bsrc=|@import|url\(", text)
    assert "A &lt;title&gt; &amp; more" in text and "<title> &" not in text
    codes = [c for q in study.key.questions.values() for c in q.sides]
    assert all(re.fullmatch("[0-9a-f]{12}", c) for c in codes)


def test_the_same_arguments_give_the_same_bytes(source: Source, study: Study) -> None:
    design = Design(pairs=36, title="A <title> & more")
    assert build_study(source, design) == study
    other = build_study(source, dataclasses.replace(design, seed=1))
    assert other.key.study != study.key.study
    assert not set(other.key.questions) & set(study.key.questions)


def test_text_from_the_data_cannot_leave_its_element(source: Source) -> None:
    title = "</script><script>alert(1)</script>{{data}}"
    study = build_study(source, Design(pairs=3, title=title, ask="quality", checks=0.0))
    assert data_of(study.page)["title"] == title
    assert study.page.count("<script") == 2 and len(study.key.questions) == 3


def test_quality_alone_is_checked_by_noise_alone(source: Source) -> None:
    study = build_study(source, Design(pairs=18, title="t", ask="quality", checks=0.3))
    checks = [q for q in study.key.questions.values() if q.check]
    assert len(checks) == 8
    assert all(set(q.sides.values()) == {TARGET, NOISE} and q.checks("quality") for q in checks)


def test_another_items_picture_checks_fidelity_but_not_quality(study: Study) -> None:
    checks = [q for q in study.key.questions.values() if q.check]
    of_other = [q for q in checks if OTHER in q.sides.values()]
    assert len(checks) == 4 and len(of_other) == 2
    assert all(q.checks("fidelity") and not q.checks("quality") for q in of_other)


def test_a_study_of_large_pictures_reads_what_it_shows(source: Source) -> None:
    """5,000 samples of 512 pixels a method would be 4 GB; a page of three pairs needs a few of them."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    example = dataclasses.replace(source.examples[0], image=noise)
    seen: list[int] = []
    large = Source(
        records=source.records,
        ids=tuple(f"{i:05}" for i in range(5000)),
        samples={m: Lazy(5000, lambda i: seen.append(i) or noise) for m in source.records},
        conditions=Lazy(5000, lambda i: np.full((1, 512, 512), i / 5000, np.float32)),
        examples=Lazy(5000, lambda i: example),
    )
    study = build_study(large, Design(pairs=3))
    assert len(seen) == 6 and len(study.page) < 8_000_000 and "data:image/webp" in study.page


def test_bad_titles_and_aspects_are_refused() -> None:
    for wrong, said in (({"ask": "fidelty"}, "Did you mean 'fidelity'"), ({"title": " "}, "title")):
        with pytest.raises(BenchError, match=said):
            Design(**wrong)


def test_the_key_comes_back_and_is_never_overwritten_by_another(
    source: Source, study: Study, tmp_path: Path
) -> None:
    path = tmp_path / "key.json"
    write_key(path, study.key)
    assert read_key(path) == study.key
    assert list(read_key(path).names) == list(study.key.names)
    write_key(path, study.key)
    other = build_study(source, Design(pairs=3, seed=1, title="Other", checks=0.0))
    with pytest.raises(BenchError, match="is the key of study"):
        write_key(path, other.key)
    assert read_key(path) == study.key


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda k: k.update(version=2), "version 2"),
        (lambda k: k.update(format="x"), "is no bps-bench study key"),
        (lambda k: k.pop("task"), "'task' is missing"),
        (lambda k: k.update(aspects=["beauty"]), "'aspects.0' must be"),
        (lambda k: k.update(methods=[["bps", "run"]]), "'methods' .* at least 2"),
        (lambda k: k.update(methods=[["bps"], 3]), "'methods.0.1' is missing"),
        (lambda k: next(iter(k["questions"].values())).update(sides={"ab12cd34": "bps"}), "at least 2"),
        (lambda k: k["questions"].update(zz={}), "'questions.zz.*pattern"),
    ],
)
def test_a_damaged_key_is_refused(
    study: Study, tmp_path: Path, change: Callable[[Any], Any], said: str
) -> None:
    path = tmp_path / "key.json"
    write_key(path, study.key)
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(BenchError, match=said):
        read_key(path)


def altered(folder: Path, target: Path, **values: Any) -> Path:
    shutil.copytree(folder, target)
    record = json.loads((target / "record.json").read_text())
    (target / "record.json").write_text(json.dumps({**record, **values}))
    return target


@pytest.mark.slow
def test_real_runs_make_a_page_and_unlike_runs_are_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = runs
    source = load_source([first, second / "record.json"])
    assert list(source.samples) == ["bps", "text-only"] and len(source.ids) == 12
    kept, key = make_study(runs, out=tmp_path / "page.html", design=Design(pairs=5))
    assert kept == tmp_path / "key.json" and read_key(kept) == key
    assert sum(not q.check for q in key.questions.values()) == 5
    with pytest.raises(BenchError, match="cannot both be"):
        make_study(runs, out=tmp_path / "page.html", key=tmp_path / "page.html", design=Design())
    with pytest.raises(BenchError, match="at least two runs, got 1"):
        load_source([first])
    with pytest.raises(BenchError, match="are the same run"):
        load_source([first, first])
    for name, value in {
        "seed": 7,
        "task": "layout",
        "protocol_hash": "0" * 64,
        "suite": "x",
    }.items():
        other = altered(second, tmp_path / name, **{name: value})
        with pytest.raises(BenchError, match=f"has {name} .* but .* has "):
            load_source([first, other])
    swapped = altered(second, tmp_path / "swapped")
    one, two = sorted((swapped / "work" / "samples").glob("*.png"))[:2]
    one.write_bytes(two.read_bytes())
    with pytest.raises(BenchError, match="are not those that were scored"):
        load_source([first, swapped])
    one.write_bytes(b"\x89PNG\r\n\x1a\n cut")
    with pytest.raises(BenchError, match=rf"{one.name} cannot be read"):
        load_source([first, swapped])
    Image.new("RGB", (8, 8)).save(one)
    with pytest.raises(BenchError, match=rf"{one.name} cannot be read .*8 x 8 pixels"):
        load_source([first, swapped])
    one.unlink()
    answer = CliRunner().invoke(
        app, ["study", "make", str(first), str(swapped), "--out", str(tmp_path / "p.html")]
    )
    assert answer.exit_code == 2 and "cannot be read" in answer.output
    assert not (tmp_path / "p.html").exists()
