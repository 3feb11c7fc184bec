"""The page in headless Chromium, from two real runs to scored answers; skipped where it is missing."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bench.study import Key, read_key
from cli import app

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs Debian's chromium and chromium-driver"
)
PATIENCE = 60.0  # seconds; a busy machine starts a browser slowly


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(downloads: Path) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    options.add_argument("--window-size=1280,900")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(runs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of three pairs and one check, asked both ways: eight questions."""
    path = tmp_path_factory.mktemp("study") / "page.html"
    words = ["study", "make", *map(str, runs), "--out", str(path), "--pairs", "3"]
    answer = CliRunner().invoke(app, words)
    assert answer.exit_code == 0, answer.output
    return path


class Reader:
    """A person at the page, who knows the key: what is asked, and pressing keys and buttons."""

    def __init__(self, browser: Any, key: Key) -> None:
        self.browser, self.key = browser, key

    def part(self, name: str) -> Any:
        return self.browser.find_element("id", name)

    def count(self) -> str:
        return str(self.part("count").text)

    def right(self) -> str:
        """The side to choose: the real picture of a check, else BPS."""
        data = json.loads(self.part("study").get_property("textContent"))
        codes = {uri: code for code, uri in data["pictures"].items()}
        left = codes[self.part("left-picture").get_attribute("src")]
        right = codes[self.part("right-picture").get_attribute("src")]
        (question,) = (q for q in self.key.questions.values() if set(q.sides) == {left, right})
        wanted = "target" if question.check else "bps"
        return "left" if question.sides[left] == wanted else "right"

    def answer(self, act: Callable[[str], None], side: str) -> None:
        """Answer once nobody could call it haste, and wait for the next question or the end."""
        before = self.count()
        time.sleep(0.3)
        act(side)
        self.wait(lambda: self.count() != before or self.part("end").is_displayed())

    def press(self, side: str, keys: dict[str, str]) -> None:
        self.browser.find_element("tag name", "body").send_keys(keys[side])

    def wait(self, holds: Callable[[], Any]) -> None:
        end = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < end, self.browser.page_source[-2000:]
            time.sleep(0.05)


@pytest.mark.slow
def test_a_person_answers_reloads_downloads_and_is_scored(browser: Any, page: Path, downloads: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    arrows = {"left": Keys.ARROW_LEFT, "right": Keys.ARROW_RIGHT, "same": Keys.ARROW_DOWN}
    digits = {"left": "1", "right": "2", "same": "0"}
    reader = Reader(browser, read_key(page.parent / "key.json"))
    browser.get(page.as_uri())
    assert reader.part("intro").is_displayed() and not reader.part("ask").is_displayed()
    reader.part("start").click()
    assert reader.count() == "1 of 8"
    reader.answer(lambda side: reader.press(side, arrows), reader.right())
    reader.answer(lambda side: reader.press(side, digits), reader.right())
    reader.answer(lambda side: reader.part(side).click(), reader.right())
    wrong = {"left": "right", "right": "left"}[reader.right()]
    reader.answer(lambda side: reader.press(side, digits), wrong)
    shown = reader.part("left-picture").get_attribute("src")
    browser.refresh()
    assert reader.count() == "5 of 8" and reader.part("progress").get_property("value") == 4
    assert reader.part("left-picture").get_attribute("src") == shown
    reader.press("back", {"back": Keys.BACKSPACE})
    assert reader.count() == "4 of 8" and reader.part(wrong).get_attribute("aria-pressed") == "true"
    for _ in range(5):
        reader.answer(lambda side: reader.press(side, arrows), reader.right())
    assert reader.part("end").is_displayed() and "All 8" in reader.part("end-text").text
    reader.part("download").click()
    reader.wait(lambda: list(downloads.glob("answers-*.json")))
    (saved,) = downloads.glob("answers-*.json")
    assert saved.name in reader.part("saved").text
    assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []
    words = ["study", "score", str(saved), "--key", str(page.parent / "key.json"), "--json"]
    results = json.loads(CliRunner().invoke(app, words).stdout)
    assert results["raters"] == 1 and results["left_out"] == []
    for aspect in results["aspects"]:
        (pair,) = aspect["pairs"]
        assert (pair["first"], pair["second"]) == ("bps", "text-only")
        assert (pair["preferred_first"], pair["no_difference"], pair["preferred_second"]) == (
            3,
            0,
            0,
        )


def test_the_page_keeps_its_hands_still(browser: Any, page: Path) -> None:
    """Held keys, shortcuts and the second half of a double click answer nothing."""
    from selenium.webdriver.common.keys import Keys

    reader = Reader(browser, read_key(page.parent / "key.json"))
    browser.get(page.as_uri())
    browser.execute_script("localStorage.clear(); location.reload()")
    reader.wait(lambda: reader.part("intro").is_displayed())
    reader.press("left", {"left": "1"})
    assert reader.part("intro").is_displayed()
    reader.part("start").click()
    time.sleep(0.3)  # past the page's own guard against haste, which would hide a failure here
    browser.execute_script("""
        for (const extra of [{repeat: true}, {ctrlKey: true}, {altKey: true}, {metaKey: true}])
          document.dispatchEvent(new KeyboardEvent("keydown", {key: "1", ...extra}));
    """)
    assert reader.count() == "1 of 8"
    browser.execute_script("for (const _ of [1, 2]) document.getElementById('left').click();")
    assert reader.count() == "2 of 8"
    reader.answer(lambda side: reader.part(side).click(), "same")
    reader.part("stop").click()
    assert "Stopped early" in reader.part("end-title").text
    reader.press("left", {"left": Keys.ARROW_LEFT})
    assert reader.part("end").is_displayed()
    saved = json.loads(reader.part("answers").get_property("value"))
    assert saved["answers"][-1]["answer"] == "same" and saved["finished"] is None


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_and_nothing_is_cut_off(browser: Any, page: Path, width: int, scheme: str) -> None:
    """WCAG 2.2: contrast of text at least 4.5; the page is never wider than its window."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())
    browser.execute_script("localStorage.clear(); location.reload()")
    Reader(browser, read_key(page.parent / "key.json")).part("start").click()
    wide, contrasts, sides = browser.execute_script(_MEASURE)
    assert wide <= width
    assert min(contrasts.values()) >= 4.5, contrasts
    left, right = sides
    assert left["y"] == right["y"] and left["width"] == right["width"] >= 120
    assert left["x"] + left["width"] <= right["x"]


_MEASURE = """
const light = (colour) => {
  const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (node) => {
  for (let n = node; n; n = n.parentElement) {
    const colour = getComputedStyle(n).backgroundColor;
    if (!/, 0\\)$/.test(colour) && colour !== "transparent") return colour;
  }
  return "rgb(255, 255, 255)";
};
const contrast = (node) => {
  const pair = [light(getComputedStyle(node).color), light(behind(node))].sort((a, b) => b - a);
  return (pair[0] + 0.05) / (pair[1] + 0.05);
};
const found = {};
for (const s of ["#prompt", "#prompt strong", "#hint", "#count", "#caption", "#left span", "#same",
                 "#same kbd", "#stop", "footer p"]) found[s] = contrast(document.querySelector(s));
const box = (id) => document.getElementById(id).getBoundingClientRect().toJSON();
return [document.documentElement.scrollWidth, found, [box("left"), box("right")]];
"""
