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


def names(browser: Any, section: str = "emoji-sketch") -> list[str]:
    """The methods of a table from top to bottom, references apart."""
    script = """return [...document.getElementById(arguments[0]).querySelectorAll('tbody tr')]
      .filter(row => !row.hidden && row.className === '').map(row => row.cells[0].textContent.trim())"""
    return list(browser.execute_script(script, section))


def focused(browser: Any) -> str:
    return str(browser.execute_script("return document.activeElement.getAttribute('aria-label')"))


def test_page_works_by_keyboard(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    browser.get(page.as_uri())
    assert names(browser) == ["BPS", "ControlNet", "T2I-Adapter"]
    assert names(browser, "emoji-layout") == ["stranger"]
    assert HOSTILE in browser.find_element(By.TAG_NAME, "body").get_attribute("textContent")
    assert browser.find_elements(By.CSS_SELECTOR, "img[onerror]") == []

    heads = browser.find_elements(By.CSS_SELECTOR, "#emoji-sketch thead th")
    head = next(head for head in heads if head.text.startswith("FD"))
    sort = head.find_element(By.TAG_NAME, "button")
    for state, order in (
        ("ascending", ["ControlNet", "BPS", "T2I-Adapter"]),
        ("descending", ["T2I-Adapter", "BPS", "ControlNet"]),
        ("none", ["BPS", "ControlNet", "T2I-Adapter"]),
    ):
        sort.send_keys(Keys.ENTER)
        assert head.get_attribute("aria-sort") == state and names(browser) == order

    stops = browser.find_elements(By.CSS_SELECTOR, "#emoji-sketch td button[tabindex='0']")
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
    shown = "return [...document.querySelectorAll('section')].filter(s => !s.hidden).map(s => s.id)"
    assert browser.execute_script(shown) == ["comparison-emoji", "cost", "emoji-sketch"]
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
    assert {url.partition("#")[0] for url in asked if not url.startswith("data:")} <= {page.as_uri()}


def opened(browser: Any, page: Path, state: str = "") -> None:
    browser.get("about:blank")  # else an address that differs in its state alone would not load anew
    browser.get(page.as_uri() + state)


def test_page_opens_with_the_comparison_and_quality_against_cost(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.by import By

    opened(browser, page)
    links = browser.find_elements(By.CSS_SELECTOR, "#contents a")
    told = ["Comparison over tasks", "Quality against cost", "sketch", "layout"]
    assert [link.text for link in links] == told
    sections = "return [...document.querySelectorAll('section')].map(s => [s.id, s.ariaLabel])"
    ids, titles = zip(*browser.execute_script(sections), strict=True)
    assert list(titles) == told and ids[:2] == ("comparison-emoji", "cost")
    assert names(browser, "comparison-emoji") == ["BPS", "ControlNet", "stranger", "T2I-Adapter"]
    assert len(browser.find_elements(By.CSS_SELECTOR, ".plane circle")) == 4, "three methods and one"
    links[3].click()
    assert browser.current_url.endswith("#at=emoji-layout")
    assert browser.execute_script("return scrollY") > 0

    cells = "#comparison-emoji tbody tr:last-child td button"
    next(cell for cell in browser.find_elements(By.CSS_SELECTOR, cells) if cell.is_displayed()).click()
    assert browser.find_element(By.ID, "detail-title").text == "T2I-Adapter on sketch"
    assert "bench run --method t2i-adapter --task sketch" in browser.find_element(By.ID, "detail").text


def test_the_address_says_what_is_shown_and_a_copy_elsewhere_has_no_dead_link(
    browser: Any, page: Path, tmp_path: Path
) -> None:
    from selenium.webdriver.common.by import By

    opened(browser, page)
    state = (
        "return [...document.querySelectorAll('tr')].filter(r => r.checkVisibility()).map(r => r.innerText)"
    )
    every = len(browser.execute_script(state))
    browser.find_element(By.ID, "only").click()
    assert names(browser) == ["BPS", "ControlNet", "T2I-Adapter"]
    assert len(browser.execute_script(state)) < every
    browser.find_element(By.CSS_SELECTOR, "#tasks input[value=emoji-sketch]").click()
    browser.find_element(By.CSS_SELECTOR, "#columns summary").click()
    boxes = browser.find_elements(By.CSS_SELECTOR, "#columns label")
    next(box for box in boxes if "train seconds" in box.text).click()
    heads = browser.find_elements(By.CSS_SELECTOR, "#emoji-sketch thead button")
    next(head for head in heads if head.text.startswith("FD")).click()
    assert names(browser) == ["ControlNet", "BPS", "T2I-Adapter"]
    shown, address = browser.execute_script(state), browser.current_url.partition("#")[2]
    for part in ("task=emoji-sketch", "only=methods", "sort=emoji-sketch", "columns=cost"):
        assert part in address

    mailed = tmp_path / "mailed.html"
    shutil.copy(page, mailed)
    opened(browser, mailed, f"#{address}")
    assert browser.execute_script(state) == shown
    links = browser.find_elements(By.CSS_SELECTOR, "a[href]")
    assert links and all(link.get_attribute("href").startswith(f"{mailed.as_uri()}#") for link in links)
    opened(browser, mailed, "#task=gone&sort=gone~x~up&columns=gone&x=gone&at=gone")
    assert len(browser.execute_script(state)) == every, "an address of another report shows all"
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", [390, 1400])
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
    browser.find_element("css selector", "main section td button").click()
    edges = (
        "const box = document.getElementById('detail').getBoundingClientRect(); return [box.left, box.right]"
    )
    left, right = browser.execute_script(edges)
    assert 0 <= left < right <= width, "the detail is seen whole"
