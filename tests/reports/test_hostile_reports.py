"""Reports of records that anyone may have written: texts stay texts in HTML, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from advbench.records import reporting
from advbench.reports.html import to_html
from advbench.reports.markdown import escape, to_markdown
from advbench.reports.section import Column, Entry, Section, Table
from advbench.reports.spreadsheets import frame_csv, inert
from advbench.results.record import Record
from advbench.results.store import Store

PAYLOADS = {
    "script": "<script>alert(1)</script><img src=x onerror=alert(1)>\"'><b>&lt;",
    "table": "a|b\n| c \\| d\n\n# e `f` $g_{$",
    "formula": '=HYPERLINK("http://localhost","x")|\'@',
}
OURS = {"script", "style", "meta", "svg", "path", "img"}


class _Page(HTMLParser):
    """What a browser would run or load of a page."""

    def __init__(self, page):
        super().__init__()
        self.scripts, self.handlers, self.sources, self.texts = 0, [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.sources += [value for name, value in attrs if name in ("src", "srcset", "data") and value is not None]

    def handle_data(self, data):
        self.texts.append(data)


def _poisoned(record, payload):
    """The record with the payload in every text that people choose."""
    content = json.loads(record.to_json())
    for part in ("target", "source", "attack"):
        if content[part]:
            content[part]["label"] = payload + content[part]["label"]
            for name in {"defense", "architecture"} & content[part].keys():
                content[part][name]["name"] = payload
    content["attack"]["name"] = payload
    content["attack"]["arguments"] |= {payload: payload}
    content["attack"]["family"] = payload
    content["dataset"] |= {"name": payload, "split": payload}
    content["measured"]["device"] = payload
    content["measured"]["environment"] = {payload: payload, "torch": payload}
    content["details"] |= {"candidates": {payload: 0.5}, "draws": {payload: 3}, "train": {"epochs": payload}}
    content["details"]["preparation"] = {payload: {"capped": True, "draws": 64, "cosines": [0.5]}}
    content["reason"] = payload if content["status"] == "error" else ""
    return Record.from_json(json.dumps(content))


@pytest.fixture(scope="module")
def suite(make_suite):
    chosen = {"targets": {"none": 0.05, "pgd-linf": 0.8}, "matrices": ("white-box", "transfer"), "side": 4, "n": 20}
    return make_suite(**chosen, failing=[("white-box", "none", "fgsm")])


@pytest.fixture(scope="module", params=list(PAYLOADS))
def published(request, suite, tmp_path_factory):
    """A payload, the folder of the reports of records that are full of it, and the folder of their site."""
    place = tmp_path_factory.mktemp("reports")
    payload = PAYLOADS[request.param]
    for record in suite.records():
        poisoned, scored = _poisoned(record, payload), record.status == "ok"
        Store(place / "out").write(poisoned, suite.examples(record) if scored else None, None)
    reporting.report(place / "out")
    reporting.publish(place / "out", to=place / "site", title=payload)
    return payload, place / "out", place / "site"


def test_no_text_of_a_record_is_markup(published):
    payload, out, site = published
    for path in (out / "leaderboard.html", *sorted(site.rglob("*.html"))):
        page = _Page(path.read_text(encoding="utf-8"))
        assert (page.scripts, page.handlers) == (1, [])
        assert all(source.startswith("data:image/png") for source in page.sources)
        assert " ".join(payload.split())[:20] in " ".join(" ".join(page.texts).split())


def test_no_text_of_a_record_breaks_a_markdown_table(published):
    _, out, _ = published
    lines = (out / "leaderboard.md").read_text(encoding="utf-8").splitlines()
    widths = [len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines]
    rows = [(width, before) for before, width in pairwise(widths) if width and before]
    assert len(rows) > 20
    assert all(width == before for width, before in rows)
    assert not any(line.startswith("|") == (width == 0) for line, width in zip(lines, widths, strict=True))
    assert {line[:3] for line in lines if line.startswith("#")} <= {"# A", "## "}


def test_no_text_of_a_record_is_a_formula(published):
    payload, out, site = published
    for path in (out / "results.csv", site / "data" / "cells.csv"):
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
        cells = [cell for row in rows for cell in row.values()]
        assert not any(cell[:1] in ("=", "+", "@", "\t", "\r") for cell in cells)
        assert rows[0]["dataset"] == ("'" if payload.startswith("=") else "") + payload
        assert {float(row["epsilon"]) for row in rows} == {0.3}


def test_numbers_stay_numbers_and_texts_are_neutralised():
    numbers = {"whole": [-3, 4], "real": [-0.5, 1e-9], "share": [None, -1.0]}
    texts = ["=1+1", "+1", "-1", "@x", "\tx", "\rx", " =1", "＝1", "a=1", "1-2", "", "'"]
    frame = pd.DataFrame({**{name: values * 6 for name, values in numbers.items()}, "text": texts})
    rows = list(csv.DictReader(io.StringIO(frame_csv(frame), newline="")))
    assert [row["whole"] for row in rows[:2]] == ["-3", "4"]
    assert [float(row["real"]) for row in rows[:2]] == [-0.5, 1e-9]
    assert [row["share"] for row in rows[:2]] == ["", "-1.0"]
    assert [row["text"] for row in rows] == [f"'{text}".replace("\r", "\n") for text in texts[:8]] + texts[8:]
    assert [inert(value) for value in (-3, -0.5, None, True)] == [-3, -0.5, None, True]


texts = st.text(st.characters(), max_size=30) | st.text("|\\`*_[]<>~$#&\n\r\t -=+@:!\x00\x1b\u202e", max_size=30)


@given(name=texts, cells=st.lists(texts, min_size=4, max_size=4))
def test_any_text_is_one_cell(name, cells):
    rows = ((Entry(cells[0], note=cells[1]), Entry(cells[2])), (Entry("x"), Entry(cells[3])))
    table = Table(name, (Column(name, heading=True), Column("b", help=name)), rows)
    section = Section(title=name, anchor="a", text=name, context=name, tables=(table,), caveats=(name,))
    page = to_html([section], title=name, summary=[(name, name)])
    parsed = _Page(page)
    assert (parsed.scripts, parsed.handlers, parsed.sources) == (1, [], [])
    page.encode()
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", page)
    lines = [line for line in to_markdown([section], title=name).encode().decode().splitlines() if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines] == [3, 3, 3, 3]
    assert "\n" not in escape(name)


def test_one_bad_record_blocks_no_report(suite, tmp_path, caplog):
    store = Store(tmp_path)
    keys = [record.key for record in suite.records()]
    suite.write(store)
    bad = {keys[0]: "{", keys[1]: "[" * 100_000, keys[2]: '{"schema_version": 99}'}
    for key, text in bad.items():
        (store.path(key) / "record.json").write_text(text)
    (store.path(keys[3]) / "more").mkdir()
    paths = reporting.report(tmp_path)
    assert {str(store.path(key)) in "".join(caplog.messages) for key in bad} == {True}
    rows = pd.read_csv(paths[2], dtype=str)
    assert set(rows.key[rows.status == "missing"]) == set(bad)
    assert set(rows.key) == set(keys)
    caplog.clear()
    reporting.report(tmp_path)


@pytest.mark.parametrize(
    "text", ["{", "[" * 100_000, '{"cells": ["../../x"]}', '{"cells": [3]}', '{"cells": {"a": 1}}', "[]"]
)
def test_a_bad_manifest_of_a_run_blocks_no_report(suite, tmp_path, text):
    suite.write(Store(tmp_path))
    (tmp_path / "run.json").write_text(text)
    paths = reporting.report(tmp_path)
    assert len(pd.read_csv(paths[2])) == len(suite.records())


def test_a_hostile_list_of_an_earlier_site_removes_nothing_else(suite, tmp_path):
    Store(tmp_path / "out").write(record := replace(suite.records()[-1]), suite.examples(record))
    site, kept = tmp_path / "site", tmp_path / "kept.html"
    names = ["notes.txt", "../kept.html", str(kept), "data/old.csv", "models/../../kept.html"]
    for path in (kept, site / "notes.txt", site / "data" / "old.csv"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (site / ".advbench-site.json").write_text(json.dumps(names))
    reporting.publish(tmp_path / "out", to=site)
    assert (kept.exists(), (site / "notes.txt").exists(), (site / "data" / "old.csv").exists()) == (True, True, False)
