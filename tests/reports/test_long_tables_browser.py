"""Long tables in a browser."""

import pytest

from advbench.records.reporting import publish
from advbench.reports.html import to_html
from advbench.results.store import Store
from tests.scale.records import Scale, write
from tests.scale.tables import long_section


@pytest.mark.browser
def test_a_reader_searches_sorts_and_filters_all_rows(browser, tmp_path):
    place = tmp_path / "page.html"
    place.write_text(to_html([long_section()], title="t"))
    browser.get(place.as_uri())
    from selenium.webdriver.support.ui import Select

    targets = "return [...document.querySelectorAll('tbody th')].map((cell) => cell.textContent)"
    assert len(browser.execute_script(targets)) == 103
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


@pytest.mark.browser
def test_the_index_of_a_site_searches_all_targets_of_a_long_board(browser, tmp_path):
    store = Store(tmp_path / "run")
    write(store, Scale(models=210, attacks=1, images=40, pictures=0))
    publish(tmp_path / "run", to=tmp_path / "site")
    browser.get((tmp_path / "site" / "index.html").as_uri())
    rows = "return [...document.querySelectorAll('tbody th a')].map((link) => [link.textContent, link.getAttribute('href')])"
    count = browser.find_element("id", "count")
    everything = browser.execute_script(rows)
    assert 100 <= len(everything) <= 200
    assert count.text == "210 of 210 entries"
    (hidden,) = {"defense-0003(strength=3)"} - {label for label, _ in everything}
    words = browser.find_element("id", "words")
    words.send_keys("0003(")
    assert browser.execute_script(rows) == [[hidden, "models/defense-0003-strength-3.html"]]
    assert count.text == "1 of 210 entries"
    words.send_keys("nothing")
    assert count.text == "0 of 210 entries"
    assert browser.execute_script("return document.querySelector('[data-threat]').hidden")
    words.clear()
    words.send_keys(" ")
    assert browser.execute_script(rows) == everything
