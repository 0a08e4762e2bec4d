"""The HTML report in a real browser."""

from __future__ import annotations

import pytest

from advbench.reports.write import write_reports

pytestmark = pytest.mark.browser


def _open(browser, store, width, scheme):
    window = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(write_reports(store.folder.parent)[1].as_uri())
    return browser


@pytest.fixture(
    params=[(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")], ids=lambda param: f"{param[0]}-{param[1]}"
)
def anywhere(request, browser, default_store):
    """The report of the default run, in windows of each width and colour scheme."""
    return _open(browser, default_store, *request.param)


@pytest.fixture
def opened(browser, default_store):
    """The report of the default run in a wide window."""
    return _open(browser, default_store, 1280, "light")


def _column(browser, table, name):
    """The texts of the visible rows of a column, in the table `table` of the page."""
    return browser.execute_script(
        """
        const table = document.querySelectorAll("table")[arguments[0]];
        const names = [...table.tHead.rows[0].cells].map((cell) => cell.querySelector("button").innerText.trim());
        const column = names.findIndex((name) => name.replace(/\\s+/g, " ").startsWith(arguments[1]));
        const rows = [...table.tBodies[0].rows].filter((row) => !row.hidden);
        return rows.map((row) => row.cells[column].querySelector(".value").innerText);
        """,
        table,
        name,
    )


def _click(browser, table, name):
    """Press the heading that begins with `name`, by the keyboard, and return its aria-sort."""
    from selenium.webdriver.common.keys import Keys

    headings = browser.find_elements("css selector", "table")[table].find_elements("css selector", "thead th")
    (heading,) = [one for one in headings if " ".join(one.get_attribute("textContent").split()) == name]
    heading.find_element("css selector", "button").send_keys(Keys.ENTER)
    return heading.get_attribute("aria-sort")


def test_the_page_opens_without_an_error_and_asks_for_nothing(anywhere):
    assert [entry for entry in anywhere.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    requests = [
        entry["message"] for entry in anywhere.get_log("performance") if 'Network.requestWillBeSent"' in entry["message"]
    ]
    assert not [message for message in requests if '"url":"http' in message]


def test_the_page_is_no_wider_than_the_window(anywhere):
    assert anywhere.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")


def test_text_and_figures_have_contrast_in_both_colour_schemes(anywhere):
    """WCAG contrast of the page's ink, soft text, accent and warning, and of the figures' labels, on its paper."""
    ratios = anywhere.execute_script(
        """
        const paper = getComputedStyle(document.body).backgroundColor;
        const luminance = (colour) => {
          const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((value) => {
            const c = value / 255;
            return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
          });
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const contrast = (a, b) => {
          const [light, dark] = [luminance(a), luminance(b)].sort((x, y) => y - x);
          return (light + 0.05) / (dark + 0.05);
        };
        const colour = (selector, property) => getComputedStyle(document.querySelector(selector))[property];
        return ["body", ".lead", ".best", "small", "caption"].map((one) => contrast(colour(one, "color"), paper)).concat(
          contrast(colour(".drawing text[fill=currentColor]", "fill"), paper));
        """
    )
    assert min(ratios) >= 4.5


def test_the_dark_scheme_is_dark(anywhere, request):
    background = anywhere.execute_script("return getComputedStyle(document.body).backgroundColor")
    level = sum(int(part) for part in background[4:-1].split(",")) / 3
    assert (level < 64) == ("dark" in request.node.callspec.id)


def test_tables_sort_by_keyboard_both_ways(opened):
    before = _column(opened, 0, "Rank")
    assert before == sorted(before)
    assert _click(opened, 0, "Clean") == "descending"
    values = [float(text.rstrip("%")) for text in _column(opened, 0, "Clean")]
    assert values == sorted(values, reverse=True)
    assert _click(opened, 0, "Clean") == "ascending"
    assert [float(text.rstrip("%")) for text in _column(opened, 0, "Clean")] == values[::-1]
    assert _click(opened, 0, "Defense") == "ascending"
    names = _column(opened, 0, "Defense")
    assert names == sorted(names)
    assert len(opened.find_elements("css selector", "table")[0].find_elements("css selector", "[aria-sort]")) == 1


def test_entries_without_a_value_stay_last(opened):
    cells = _index(opened, "All scored cells")
    for direction in ("descending", "ascending"):
        assert _click(opened, cells, "Median distance") == direction
        texts = _column(opened, cells, "Median distance")
        assert "–" not in texts[:4]
        assert set(texts[4:]) == {"–"}


def _index(browser, caption):
    captions = [one.get_attribute("textContent") for one in browser.find_elements("css selector", "caption")]
    (found,) = [i for i, text in enumerate(captions) if text.startswith(caption)]
    return found


def test_rows_are_filtered_by_words_and_by_choice(opened):
    cells = _index(opened, "All scored cells")
    holder = opened.find_elements("css selector", "[data-table]")[cells]
    search = holder.find_element("css selector", "input[type=search]")
    count = holder.find_element("css selector", "output")
    assert count.text == "72 of 72 rows"
    search.send_keys("white-box PGD-linf")
    assert count.text == "3 of 72 rows"
    assert set(_column(opened, cells, "Target")) == {"pgd-linf"}
    search.clear()
    search.send_keys(" ")
    choice = holder.find_elements("css selector", "select")[0]
    choice.find_element("css selector", "option[value='black-box']").click()
    assert count.text == "12 of 72 rows"
    assert set(_column(opened, cells, "Matrix")) == {"black-box"}
    search.send_keys("no such thing")
    assert count.text == "0 of 72 rows"
    labels = holder.find_elements("css selector", "label")
    assert all(label.find_elements("css selector", "input, select") for label in labels)


def test_the_focus_is_visible(opened):
    from selenium.webdriver.common.keys import Keys

    opened.find_element("css selector", "body").send_keys(Keys.TAB)
    style = opened.execute_script(
        "const s = getComputedStyle(document.activeElement); return [s.outlineStyle, s.outlineWidth]"
    )
    assert style == ["solid", "2px"]


def test_image_grids_line_up_with_their_answers(anywhere):
    widths = anywhere.execute_script(
        """
        const grid = document.querySelector(".frame");
        const image = grid.querySelector("img");
        return [image.naturalWidth, image.getBoundingClientRect().width,
                grid.querySelector(".answers").getBoundingClientRect().width];
        """
    )
    assert widths[0] == 290
    assert widths[1] == pytest.approx(widths[2], abs=1)
