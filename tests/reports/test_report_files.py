"""The rendered files: Markdown, HTML, CSV, and the folder they are written to."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from advbench.reports.data_frame import frame
from advbench.reports.html import to_html
from advbench.reports.markdown import escape, to_markdown
from advbench.reports.section import Column, Entry, Section, Table
from advbench.reports.terminal import print_leaderboard
from advbench.reports.write import REPORTS, write_reports
from advbench.results.statistics import cell_statistics
from advbench.results.store import Store

HOSTILE = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Tags with their attributes and the text of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def written(default_store):
    return dict(zip(REPORTS, write_reports(default_store.folder.parent), strict=True))


@pytest.fixture(scope="module")
def page(written):
    return Page(written["leaderboard.html"].read_text(encoding="utf-8"))


def test_reports_and_results_never_import_torch(tmp_path, make_suite):
    make_suite(targets={"a": 0.5}, attacks={"deepfool": 1.0}).write(Store(tmp_path))
    program = """
import sys
import advbench.results.record, advbench.results.statistics, advbench.results.store
import advbench.reports.html, advbench.reports.terminal, advbench.reports.data_frame, advbench.reports.write
from advbench.reports import sections
heavy = {"torch", "pandas", "matplotlib", "seaborn", "scipy", "jinja2", "tabulate"} & set(sys.modules)
assert not heavy, heavy
advbench.reports.write.write_reports(__import__("pathlib").Path(sys.argv[1]))
assert "torch" not in sys.modules
"""
    found = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "leaderboard.html").is_file()


def test_html_needs_nothing_from_outside(page, written):
    text = written["leaderboard.html"].read_text(encoding="utf-8")
    for _, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "action", "data", "poster", "srcset"):
                assert value.startswith(("#", "data:image/png;base64,")), (name, value)
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\((?!#)", text.replace("http://www.w3.org/", ""))
    assert not page.all("link")
    assert not page.all("iframe")


def test_the_content_security_policy_allows_exactly_this_style_and_script(page):
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        digest = hashlib.sha256("".join(page.texts[tag]).encode()).digest()
        assert f"{tag}-src 'sha256-{base64.b64encode(digest).decode()}'" in policy
    inline = [name for _, attributes in page.tags for name in attributes if name == "style" or name.startswith("on")]
    assert inline == []


def test_html_can_be_read_without_seeing_it(page):
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(heading.get("scope") in ("col", "row") for heading in page.all("th"))
    assert all(image["alt"] for image in page.all("img"))
    assert all(one["aria-label"] for _, one in page.tags if one.get("role") == "img")
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    assert {link["href"][1:] for link in page.all("a")} <= set(identifiers)
    assert len(page.all("h1")) == 1


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, make_suite):
    """A run whose every name tries to break out."""
    store = Store(tmp_path_factory.mktemp("hostile"))
    suite = make_suite(
        targets={
            HOSTILE: 0.5,
            "a|b`c*": 0.2,
            '"><img src=x onerror=alert(2)>': 0.4,
            r"$\frac{": 0.1,
            "[red]rich[/red]": 0.3,
        },
        attacks={"pgd</td></style>": 1.0, "deepfool": 1.0},
        matrices=("white-box", "transfer"),
        dataset="</title><b>",
        device="<i>CPU</i>",
        architecture="{{ 7 * 7 }}",
        failing=[("white-box", "a|b`c*", "deepfool")],
    )
    suite.write(store)
    return store


def test_names_are_escaped_in_html(hostile):
    page = Page(write_reports(hostile.folder.parent)[1].read_text(encoding="utf-8"))
    assert len(page.all("script")) == 1
    assert not page.all("i")
    assert not page.all("b")
    assert all("onerror" not in attributes for _, attributes in page.tags)
    shown = page.texts["span"]
    assert HOSTILE in shown
    assert '"><img src=x onerror=alert(2)>' in shown
    assert "{{ 7 * 7 }}" in shown
    assert "49" not in shown


def test_names_are_escaped_in_markdown(hostile):
    text = write_reports(hostile.folder.parent)[0].read_text(encoding="utf-8")
    assert "<script" not in text.replace(r"\<script", "")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert any(r"a\|b\`c\*" in line for line in lines)
    for block in re.split(r"\n\n", text):
        if block.startswith("|"):
            counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
            assert len(counts) == 1, "every row has the same number of columns"


def test_markdown_escapes_what_it_would_interpret():
    assert escape("a_b*c|d<e>\n[f]`g`") == r"a\_b\*c\|d\<e\> \[f\]\`g\`"
    assert escape("AT&T &lt;") == "AT&amp;T &amp;lt;"


def test_names_are_no_markup_on_a_terminal(hostile):
    console = Console(file=io.StringIO(), width=200, color_system=None)
    print_leaderboard(hostile.folder.parent, None, console)
    assert "[red]rich[/red]" in console.file.getvalue()


@pytest.mark.parametrize("width", [40, 80, 140])
def test_the_terminal_leaderboard_fits_its_width(default_store, width):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_leaderboard(default_store.folder.parent, None, console)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for name in ("pgd-linf", "robust-linf", "none", "input-noise"):
        assert name in text
    assert ("Clean" in text) == (width >= 80)
    assert ("Weakest" in text) == (width >= 120)


def test_the_terminal_shows_the_chosen_cells_only(default_store):
    wanted = [key for key in default_store.keys() if default_store.read(key).target["label"] == "none"]  # noqa: SIM118
    console = Console(file=io.StringIO(), width=100, color_system=None)
    print_leaderboard(default_store.folder.parent, wanted, console)
    assert "pgd-linf" not in console.file.getvalue()


def test_markdown_has_the_tables_and_shows_the_figures(written):
    text = written["leaderboard.md"].read_text(encoding="utf-8")
    folder = written["leaderboard.md"].parent
    shown = re.findall(r"!\[[^\]]+\]\((figures/[a-z0-9-]+\.svg)\)", text)
    assert {path.relative_to(folder).as_posix() for path in (folder / "figures").iterdir()} == set(shown)
    assert sum(name.startswith("figures/transfer-linf-0-3-on-mnist-") for name in shown) == 3
    for name in shown:
        drawn = (folder / name).read_text(encoding="utf-8")
        root = ElementTree.fromstring(drawn)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert (root[0].get("width"), root[0].get("fill")) == ("100%", "#ffffff"), "it reads on a dark page too"
        assert "currentColor" not in drawn
    assert text.startswith("# Adversarial robustness leaderboard\n\n## Leaderboard: linf ≤ 0.3 on mnist\n")
    assert re.search(r"\[\d+ figures\]\(leaderboard\.html#images\)", text), "grids of images are left to the page"
    assert re.search(r"\|\s+1 \| \*\*\S+\*\* +\|", text)


def test_an_empty_table_is_drawn_by_both_renderers():
    section = Section("Title", "title", "Text.", tables=(Table("Empty", (Column("A"), Column("B", numeric=True)), ()),))
    assert "| A" in to_markdown([section], title="T")
    assert "<caption>Empty</caption>" in to_html([section], title="T")


def test_sort_values_survive_html():
    rows = tuple((Entry("x", order=order),) for order in (float("inf"), 0.1, None, "name", 3))
    text = to_html([Section("T", "t", "", tables=(Table("C", (Column("A"),), rows),))], title="T")
    assert re.findall(r'data-order="([^"]*)"', text) == ["Infinity", "0.1", "", "name", "3.0"]


def test_the_frame_has_a_row_for_every_cell(store, make_suite):
    suite = make_suite(failing=[("white-box", "none", "pgd")], attacks={"pgd": 1.0, "deepfool": 1.0})
    keys = suite.write(store)
    found = frame([store.read(key) for key in keys], store)
    assert list(found["key"]) == keys
    assert (found["status"] == "error").sum() == 1
    failed = found[found["status"] == "error"].iloc[0]
    assert failed["reason"] == "ViolationError: pgd left the ball by 0.2"
    assert pd.isna(failed["robust_accuracy"])
    for _, row in found[found["status"] == "ok"].iterrows():
        expected = cell_statistics(store.read(row["key"]), store.examples(row["key"]))
        assert row["robust_accuracy"] == expected.robust_accuracy.value
        assert row["success_clean_correct_high"] == expected.success_clean_correct.high
        assert pd.isna(row["median_distance"]) == (row["attack"] == "pgd")
        assert row["forwards_per_image"] == expected.forwards


def test_the_csv_holds_the_frame_and_the_missing_keys(tmp_path, make_suite):
    keys = make_suite().write(Store(tmp_path))
    path = write_reports(tmp_path, [*keys, "ab" * 32])[2]
    found = pd.read_csv(path)
    assert len(found) == len(keys) + 1
    assert list(found[found["status"] == "missing"]["key"]) == ["ab" * 32]
    assert json.loads(found["attack_arguments"][found["attack"] == "pgd"].iloc[0]) == {"steps": 40, "step_size": 0.1}


def test_reports_are_the_same_bytes_from_the_same_records(tmp_path, make_suite):
    contents = []
    for name in ("a", "b"):
        make_suite().write(Store(tmp_path / name))
        contents.append([path.read_bytes() for path in write_reports(tmp_path / name)])
    assert contents[0] == contents[1]


def _stamps(paths):
    return [path.stat().st_mtime_ns for path in paths]


def test_nothing_is_drawn_again_until_something_changed(tmp_path, make_suite):
    keys = make_suite(targets={"a": 0.5, "b": 0.3}).write(Store(tmp_path))
    paths = write_reports(tmp_path)
    assert [path.name for path in paths] == list(REPORTS)
    before = _stamps(paths)
    assert _stamps(write_reports(tmp_path)) == before
    assert _stamps(write_reports(tmp_path, list(reversed(keys)))) == before, "the order of the keys does not matter"
    first = paths[1].read_text(encoding="utf-8")

    paths[0].write_text("edited")
    assert "edited" not in write_reports(tmp_path)[0].read_text(encoding="utf-8")
    paths[2].unlink()
    assert write_reports(tmp_path)[2].is_file()
    assert paths[1].read_text(encoding="utf-8") == first

    write_reports(tmp_path, keys[:1])
    assert paths[1].read_text(encoding="utf-8") != first
    make_suite(targets={"c": 0.9}).write(Store(tmp_path))
    assert ">c<" in write_reports(tmp_path)[1].read_text(encoding="utf-8")
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


def test_a_damaged_record_becomes_a_missing_row(tmp_path, make_suite):
    store = Store(tmp_path)
    keys = make_suite().write(store)
    (store.path(keys[0]) / "examples.npz").write_bytes(b"PK")
    found = pd.read_csv(write_reports(tmp_path)[2]).set_index("key")["status"]
    assert found[keys[0]] == "missing"
    assert (found.drop(keys[0]) == "ok").all()


def test_old_records_of_another_run_do_not_mix(tmp_path, make_suite):
    old = make_suite(targets={"old": 0.9}).write(Store(tmp_path))
    new = make_suite(targets={"new": 0.5}).write(Store(tmp_path))
    text = write_reports(tmp_path, new)[0].read_text(encoding="utf-8")
    assert "new" in text
    assert "old" not in text
    assert set(np.array(pd.read_csv(tmp_path / "results.csv")["key"])) == set(new)
    assert not set(old) & set(new)
