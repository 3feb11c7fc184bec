"""The HTML page: data that cannot break out, pictures within a budget, the same bytes each time."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.reporting import Run, build_comparison, build_table, load_runs, make_report
from bench.reporting.figures import gallery
from bench.reporting.page import encode_galleries
from bench.reporting.render import data_block

Writer = Callable[..., Run]
pytestmark = pytest.mark.usefixtures("no_drawing")
NASTY = "</script><script>alert(1)</script><!--<b id=x>&amp; \"quoted\" 'one' \u2028 {{script}}"


class Blocks(HTMLParser):
    """What a browser would see: the tags, and the text of each script block by its id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: dict[str, str] = {}
        self._open: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._open = dict(attrs).get("id") or "code" if tag == "script" else None

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self.scripts[self._open] = self.scripts.get(self._open, "") + data

    def handle_endtag(self, tag: str) -> None:
        self._open = None


def read(folder: Path) -> Any:
    """The data of a page, as a browser would find it."""
    return json.loads(Blocks((folder / "index.html").read_text()).scripts["data"])


def test_data_block_holds_any_text_and_no_markup() -> None:
    block = data_block({"name": NASTY, NASTY: [1.5, None, True]})
    assert not set("<>&\u2028\u2029") & set(block)
    assert json.loads(block) == {"name": NASTY, NASTY: [1.5, None, True]}
    with pytest.raises(ValueError):
        data_block({"value": float("nan")})


def test_hostile_names_stay_text(add_run: Writer, results: Path, tmp_path: Path) -> None:
    odd = re.sub("[\u2028\u2029]", "", NASTY)  # which no record may hold
    add_run("bps", {"fd": 1.0}, run_id="one", attribution=odd, options={"text": odd})
    add_run("bps", {"fd": 2.0}, run_id="two", attribution=odd)
    make_report(results, tmp_path)
    text = (tmp_path / "index.html").read_text()
    seen = Blocks(text)
    assert seen.tags.count("script") == 2 and "alert(1)" not in seen.scripts["code"]
    assert not {"b", "i", "img"} & set(seen.tags)
    data = json.loads(seen.scripts["data"])
    assert data["attribution"] == [odd]
    assert any(odd in row["name"] for table in data["tables"] for row in table["rows"])


def test_page_asks_for_nothing_outside_itself(report: Path) -> None:
    text = (report / "index.html").read_text()
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", text)
    assert "http://" not in text and "https://" not in text
    assert "@import" not in text and "url(" not in text and "fetch(" not in text
    assert "default-src 'none'" in text


def test_page_says_what_the_table_says(full: Path, report: Path) -> None:
    data, table = read(report), build_table(load_runs(full))
    (shown,) = data["tables"]
    kinds = {row["name"]: row["kind"] for row in shown["rows"]}
    assert kinds["text-only"] == "floor" and kinds["autoencoder"] == "ceiling"
    assert kinds["real training images"] == "reference" and kinds["BPS"] == ""
    rows = {row["name"]: row for row in shown["rows"]}
    place = next(i for i, c in enumerate(shown["columns"]) if c["title"] == "line F1 ↑")
    own = next(row for row in table.rows if row.name == "BPS")
    column = next(c for c in table.columns if c.metric == "sketch_f1")
    assert rows["BPS"]["cells"][place]["value"] == own.cells[column].value
    assert rows["real training images"]["cells"][place] is None
    assert [data["runs"][i]["seed"] for i in rows["BPS"]["runs"]] == [0, 1, 2]
    assert "BPS beats text-only" in " ".join(rows["BPS"]["said"][shown["columns"][place]["key"]])
    assert data["protocols"][rows["BPS"]["protocol"]]["sampler"]["guidance"] == 3.0
    assert len(shown["files"]) == 3 + 2 * 4 and all((report / name).is_file() for name in shown["files"])


def test_bold_is_only_what_the_comparison_tells_apart(full: Path, report: Path) -> None:
    standings = build_comparison([build_table(load_runs(full))]).standings
    clear = {(s.best.name, column.metric) for column, s in standings.items() if s.clear}
    (shown,) = read(report)["tables"]
    bold = {
        (row["name"], column["key"].split("|")[0])
        for row in shown["rows"]
        for cell, column in zip(row["cells"], shown["columns"], strict=True)
        if cell and cell.get("bold")
    }
    assert bold == clear and bold


def test_sentences_and_pictures_call_rows_as_the_table_does(suite_report: Path) -> None:
    data = read(suite_report)
    sketch = next(table for table in data["tables"] if table["task"] == "sketch")
    rows = {row["name"]: row for row in sketch["rows"]}
    assert {"BPS", "BPS (schedule=uniform)"} <= set(rows)
    said = [line for lines in rows["BPS"]["said"].values() for line in lines]
    assert said and not any("head_heavy" in line for line in said)
    assert all(row["pictures"] for name, row in rows.items() if name.startswith("BPS"))
    assert len(data["runs"]) == 62 and len(data["galleries"]) == 4
    assert (suite_report / "index.html").stat().st_size < 2_000_000


def test_pictures_are_the_tiles_and_ends_are_shared(full: Path, report: Path) -> None:
    data = read(report)
    (shown,), (made,) = data["tables"], data["galleries"]
    rows = [row for row in build_table(load_runs(full)).rows if row.kind in {"method", "floor"}]
    tiles, _ = gallery(rows)
    assert tiles is not None and made["items"] == 24
    assert len(made["strips"]) == 2 + 3, "condition and target are shared"
    for row in shown["rows"]:
        if row["pictures"] is not None:
            strip = base64.b64decode(made["strips"][row["pictures"][1]].split(",")[1])
            with Image.open(io.BytesIO(strip)) as opened:
                np.testing.assert_array_equal(
                    np.asarray(opened), np.concatenate(list(tiles.columns[row["name"]]), axis=1)
                )
    assert {row["name"] for row in shown["rows"] if row["pictures"]} == {"BPS", "T2I-Adapter", "text-only"}


def test_pictures_lose_quality_and_items_to_keep_within_a_budget(full: Path) -> None:
    rows = [row for row in build_table(load_runs(full)).rows if row.kind in {"method", "floor"}]
    shown, _ = gallery(rows)
    assert shown is not None
    found = {budget: encode_galleries([shown], budget) for budget in (10**9, 100_000, 20_000)}
    assert all(about["bytes"] <= budget for budget, (_, about) in found.items())
    assert [galleries[0]["items"] for galleries, _ in found.values()] == [24, 24, 8]
    assert len({about["format"] for _, about in found.values()}) == 3
