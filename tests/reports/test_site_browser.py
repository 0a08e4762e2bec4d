"""The published site in a real browser, from the file system."""

from __future__ import annotations

from importlib import resources

import pytest

from advbench.records import reporting
from advbench.results.store import Store

pytestmark = pytest.mark.browser

WIDTHS = (1280, 390)
PAGES = ("index.html", "models/b-base-a.html", "history.html")


@pytest.fixture(scope="module")
def published(tmp_path_factory, make_suite):
    """Two boards with three models, one of them incomplete, from the file system."""
    folder = tmp_path_factory.mktemp("published")
    make_suite(
        targets={"a": 0.55, "b(base='a')": 0.8, "c": 0.1},
        attacks={"pgd": 1.0, "deepfool": 0.9},
        matrices=("white-box", "transfer"),
        epsilons=(0.1, 0.3),
        failing=[("white-box", "c", "pgd")],
    ).write(Store(folder / "run"))
    reporting.publish(folder / "run", to=folder / "site", history=[_baseline(folder, make_suite, 0.6), folder / "later"])
    return folder / "site"


def _baseline(folder, make_suite, robustness):
    """Two runs of one model, the second one worse; returns the first."""
    for name, value in {"earlier": robustness, "later": robustness - 0.4}.items():
        make_suite(targets={"a": value}, attacks={"pgd": 1.0}, matrices=("white-box",)).write(Store(folder / name))
    return folder / "earlier"


@pytest.fixture
def open_page(browser, published):
    def open_it(page, width=1280, scheme="light"):
        window = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get((published / page).as_uri())
        return browser

    return open_it


def _shown(browser, name="Defense"):
    """The texts of a column's visible entries, board by board."""
    return browser.execute_script(
        """
        return [...document.querySelectorAll("[data-threat]")].filter((board) => !board.hidden).map((board) => {
          const table = board.querySelector("table");
          const names = [...table.tHead.rows[0].cells].map((cell) => cell.textContent.replace(/\\s+/g, " ").trim());
          const column = names.indexOf(arguments[0]);
          return [...table.tBodies[0].rows].filter((row) => !row.hidden)
            .map((row) => row.cells[column].querySelector(".value").innerText);
        });
        """,
        name,
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", PAGES)
def test_axe_finds_nothing_against_accessibility(open_page, page, width, scheme):
    """axe-core 4, all of its rules; every page opens without a message and asks for nothing but files."""
    pytest.importorskip("axe_core_python", reason="axe-core-python is not installed")
    axe = (resources.files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8")
    browser = open_page(page, width, scheme)
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    requests = [one["message"] for one in browser.get_log("performance") if 'Network.requestWillBeSent"' in one["message"]]
    assert not [message for message in requests if '"url":"http' in message]
    browser.set_script_timeout(240)
    browser.execute_script(axe)
    found = browser.execute_async_script("const done = arguments[0]; axe.run(document).then(done)")
    assert len(found["passes"]) > 20, "the page was looked at"
    assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == []


@pytest.mark.parametrize("page", PAGES)
def test_a_phone_scrolls_tables_and_not_the_page(open_page, page):
    browser = open_page(page, 390)
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")


def test_models_are_searched_over_all_boards(open_page):
    browser = open_page("index.html")
    count = browser.find_element("id", "count")
    assert [sorted(board) for board in _shown(browser)] == [["a", "b(base='a')", "c"]] * 2
    assert count.text == "6 of 6 entries"
    words = browser.find_element("id", "words")
    words.send_keys("B(BASE")
    assert _shown(browser) == [["b(base='a')"]] * 2
    assert count.text == "2 of 6 entries"
    words.send_keys(" nothing like it")
    assert _shown(browser) == []
    assert count.text == "0 of 6 entries"


def test_boards_are_filtered_by_threat(open_page):
    browser = open_page("index.html")
    browser.find_element("css selector", "#threat option:nth-child(3)").click()
    (board,) = [one for one in browser.find_elements("css selector", "[data-threat]") if one.is_displayed()]
    assert board.get_attribute("data-threat") == "linf ≤ 0.3 on mnist"
    assert browser.find_element("id", "count").text == "3 of 6 entries"


def test_columns_are_chosen_and_boards_sorted(open_page):
    from selenium.webdriver.common.keys import Keys

    browser = open_page("index.html")
    board = browser.find_element("css selector", "[data-threat]")
    board.find_element("css selector", ".columns summary").send_keys(Keys.ENTER)
    labels = {one.text: one for one in board.find_elements("css selector", ".columns label")}
    heading = next(one for one in board.find_elements("css selector", "thead th") if one.text.startswith("Transfer"))
    assert heading.is_displayed()
    labels["Transfer"].find_element("css selector", "input").send_keys(Keys.SPACE)
    assert not heading.is_displayed()
    labels["Transfer"].find_element("css selector", "input").send_keys(Keys.SPACE)
    assert heading.is_displayed()
    assert "Defense" not in labels, "the column that names the rows stays"
    button = next(one for one in board.find_elements("css selector", "thead button") if one.text.startswith("Clean"))
    button.send_keys(Keys.ENTER)
    values = [float(text.rstrip("%")) for text in _shown(browser, "Clean")[0]]
    assert values == sorted(values, reverse=True)


def test_a_phone_shows_the_first_columns_until_more_are_asked_for(open_page):
    browser = open_page("index.html", 390)
    board = browser.find_element("css selector", "[data-threat]")
    headings = board.find_elements("css selector", "thead th")
    shown = [one for one in headings if one.value_of_css_property("display") != "none"]
    names = [" ".join(one.get_attribute("textContent").split()) for one in shown]
    assert names == ["Rank", "Defense", "Robust accuracy", "Clean"]


def test_a_row_leads_to_its_models_page_and_back(open_page):
    browser = open_page("index.html")
    browser.find_element("link text", "b(base='a')").click()
    assert browser.find_element("css selector", "h1").text == "b(base='a')"
    assert browser.find_elements("css selector", "#attacks tbody tr")
    assert browser.find_elements("css selector", ".frame img")
    browser.find_element("css selector", ".trail a").click()
    assert browser.find_elements("css selector", "[data-threat]")
