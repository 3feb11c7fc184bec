"""The HTML page in headless Chromium: sorted, filtered, opened and closed by keyboard alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.reporting import make_report
from tests.report.conftest import dots_for_figures

webdriver = pytest.importorskip("selenium.webdriver")
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="chromium is not installed")
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(build: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of three methods on one task, one on another, and a line of credit that is markup."""
    runs, out = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("out")
    for method, fd in (("bps", 38.0), ("controlnet", 36.0), ("t2i-adapter", 41.0)):
        build.write_run(runs, method, {"fd": fd, "sketch_f1": 0.5}, tiles=True, size=16)
    build.write_run(runs, "stranger", {"fd": 39.0, "miou": 0.5}, task="layout", attribution=HOSTILE)
    with dots_for_figures():
        make_report(runs, out)
    return out / "index.html"


def names(browser: Any, section: int = 0) -> list[str]:
    """The methods of a table from top to bottom, references apart."""
    script = """return [...document.querySelectorAll('section')[arguments[0]].querySelectorAll('tbody tr')]
      .filter(row => !row.hidden && row.className === '').map(row => row.cells[0].textContent.trim())"""
    return list(browser.execute_script(script, section))


def focused(browser: Any) -> str:
    return str(browser.execute_script("return document.activeElement.getAttribute('aria-label')"))


def test_page_works_by_keyboard(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    browser.get(page.as_uri())
    assert names(browser) == ["BPS", "ControlNet", "T2I-Adapter"]
    assert names(browser, 1) == ["stranger"]
    assert HOSTILE in browser.find_element(By.TAG_NAME, "body").get_attribute("textContent")
    assert browser.find_elements(By.CSS_SELECTOR, "img[onerror]") == []

    heads = browser.find_elements(By.CSS_SELECTOR, "thead th")
    head = next(head for head in heads if head.text.startswith("FD"))
    sort = head.find_element(By.TAG_NAME, "button")
    for state, order in (
        ("ascending", ["ControlNet", "BPS", "T2I-Adapter"]),
        ("descending", ["T2I-Adapter", "BPS", "ControlNet"]),
        ("none", ["BPS", "ControlNet", "T2I-Adapter"]),
    ):
        sort.send_keys(Keys.ENTER)
        assert head.get_attribute("aria-sort") == state and names(browser) == order

    stops = browser.find_elements(By.CSS_SELECTOR, "section:first-of-type td button[tabindex='0']")
    assert len(stops) == 1
    stops[0].send_keys(Keys.ARROW_RIGHT)
    for key, wanted in ((Keys.ARROW_RIGHT, ", FD ("), (Keys.ARROW_DOWN, "BPS, ")):
        while wanted not in focused(browser):
            before = focused(browser)
            browser.switch_to.active_element.send_keys(key)
            assert focused(browser) != before
    cell = focused(browser)
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    dialog = browser.find_element(By.ID, "detail")
    assert (
        dialog.get_attribute("open")
        and "bench run" in dialog.text
        and "guidance" in (dialog.get_attribute("textContent"))
    )
    wait = "const done = arguments[0]; Promise.all([...document.images].map(i => i.decode())).then(done)"
    browser.execute_async_script(wait)
    sizes = browser.execute_script("return [...document.images].map(i => i.naturalWidth)")
    assert len(sizes) == 3 * 24 and set(sizes) == {24 * 16}
    boxes = "return [...document.querySelectorAll('.tile')].map(t => [t.clientWidth, t.clientHeight])"
    assert {wide - tall for wide, tall in browser.execute_script(boxes)} <= {-1, 0, 1}, "one square picture"
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert dialog.get_attribute("open") is None and focused(browser) == cell

    _filter(browser, By, Keys)
    _nothing_was_asked_for(browser, page)


def _filter(browser: Any, by: Any, keys: Any) -> None:
    """Choose a task and a method."""
    browser.find_element(by.CSS_SELECTOR, "#tasks input:checked").send_keys(keys.ARROW_RIGHT)
    shown = browser.execute_script("return [...document.querySelectorAll('section')].map(s => !s.hidden)")
    assert shown == [True, False]
    browser.find_element(by.ID, "find").send_keys("CONTROL")
    assert names(browser) == ["ControlNet"]


def _nothing_was_asked_for(browser: Any, page: Path) -> None:
    """No message in the console, and no request but for the page and what lies in it."""
    assert browser.get_log("browser") == []
    messages = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    asked = {
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    }
    assert {url for url in asked if not url.startswith("data:")} <= {page.as_uri()}


@pytest.mark.parametrize("width", [390, 1280])
def test_page_never_scrolls_sideways_itself(browser: Any, page: Path, width: int) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())
    whole, table, box = browser.execute_script(
        "const box = document.querySelector('.scroll'); const root = document.documentElement;"
        "return [root.scrollWidth - root.clientWidth, box.scrollWidth, box.clientWidth]"
    )
    assert whole == 0
    assert table > box or width > 390
