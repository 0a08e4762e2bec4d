"""Long tables in a browser."""

import pytest

from advbench.reports.html import to_html
from tests.scale.tables import long_section


@pytest.mark.browser
def test_a_reader_searches_sorts_and_filters_all_rows(browser, tmp_path):
    place = tmp_path / "page.html"
    place.write_text(to_html([long_section()], title="t"))
    browser.get(place.as_uri())
    from selenium.webdriver.support.ui import Select

    targets = "return [...document.querySelectorAll('tbody th')].map((cell) => cell.textContent)"
    search = browser.find_element("css selector", "input[type=search]")
    search.send_keys("target 1234")
    assert browser.execute_script(targets) == ["target 1234 </script>"]
    search.clear()
    search.send_keys("note")
    assert len(browser.execute_script(targets)) == 100
    click = "document.querySelector(arguments[0]).click()"
    browser.execute_script(click, ".more button")
    assert len(browser.execute_script(targets)) == 200
    browser.execute_script(click, "thead th:nth-child(3) button")
    assert browser.execute_script(targets)[:2] == ["target 1499", "target 1498"]
    Select(browser.find_element("css selector", "select")).select_by_visible_text("even")
    assert browser.execute_script(targets)[:2] == ["target 1498", "target 1496"]
    assert "750 found" in browser.find_element("css selector", ".more").text
