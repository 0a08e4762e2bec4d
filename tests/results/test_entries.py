"""Papers, authors, venues and links of models: from a file, from a run, and on what is published."""

from __future__ import annotations

import json
from typing import ClassVar

import pytest

from advbench.records import entries as kept_entries
from advbench.records import reporting
from advbench.registry import registry
from advbench.reports.cells import load
from advbench.results.archive import source_of
from advbench.results.entries import ModelEntry, entries_of, entry_in, facts_of_model, joined
from advbench.results.store import Store
from tests.reports.conftest import Suite

FILE = """
["a"]
paper = "A <b>paper</b>"
authors = "Doe, J."
venue = "ICML 2030"
link = "https://example.org/a?x=1&y=2"
additional_data = true
parameters = 11173962
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a", "Expected TOML with a table for each model"),
        ('a = "x"', "Expected facts of a by name, got str"),
        ('[a]\nvenu = "x"', "Expected facts of a among paper, authors, venue, link, .*, got 'venu'"),
        ("[a]\nvenue = 3", "a: Expected `venue` as text, got 3"),
        ('[a]\nlink = "javascript:alert(1)"', "a: Expected `link` as an address"),
        ('[a]\nadditional_data = "no"', "a: Expected `additional_data` true or false, got 'no'"),
        ("[a]\nparameters = true", "a: Expected `parameters` as a number of them, got True"),
        ("[a]\nparameters = -1", "a: Expected `parameters` as a number of them, got -1"),
    ],
)
def test_a_bad_file_of_entries_is_one_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        entries_of(text)
    (tmp_path / "e.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"e\.toml: ") as caught:
        kept_entries.read_entries(tmp_path / "e.toml")
    assert "\n" not in str(caught.value)


def test_a_label_comes_before_a_defense_and_the_users_file_before_the_run():
    run = {"pgd-linf": ModelEntry(authors="Madry et al. 2018", link="https://arxiv.org/abs/1706.06083")}
    user = {"pgd-linf": ModelEntry(authors="Madry, A."), "pgd-linf(steps=9)": ModelEntry(venue="ICLR 2018")}
    found = facts_of_model(joined(user, run), "pgd-linf(steps=9)", "pgd-linf")
    expected = {"venue": "ICLR 2018", "authors": "Madry, A.", "link": "https://arxiv.org/abs/1706.06083"}
    assert found.described() == expected
    assert facts_of_model(run, "other", "none") == ModelEntry()


def test_the_paper_of_a_defense_is_read_from_its_first_line():
    found = kept_entries.declared(["pgd-linf", "none", "smooth-gradient", "own"])
    assert found["pgd-linf"].described() == {"authors": "Madry et al. 2018", "link": "https://arxiv.org/abs/1706.06083"}
    assert found["smooth-gradient"].link == "https://doi.org/10.1007/s00500-017-2998-4"
    assert set(found) == {"pgd-linf", "smooth-gradient"}
    two = "Non-local means (Buades et al. 2005), as in Xu and Li 2018, arXiv:1704.01155, and Guo 2018, arXiv:1711.00117"
    assert entry_in(two) == ModelEntry(authors="Xu and Li 2018", link="https://arxiv.org/abs/1704.01155")


def test_a_defense_of_a_plug_in_declares_its_entry(monkeypatch):
    class Mine:
        """My defense, Doe et al. 2030, arXiv:3001.00001."""

        entry: ClassVar = {"paper": "Mine", "authors": "Doe, J. and Roe, R.", "additional_data": False}

    class Wrong:
        """Another one."""

        entry: ClassVar = {"papre": "Mine"}

    made = {"mine": Mine, "wrong": Wrong}
    monkeypatch.setattr(registry.defenses, "factory", made.__getitem__)
    monkeypatch.setattr(registry.defenses, "describe", lambda name: made[name].__doc__.rstrip("."))
    found = kept_entries.declared(made)
    assert found == {
        "mine": ModelEntry(
            paper="Mine", authors="Doe, J. and Roe, R.", link="https://arxiv.org/abs/3001.00001", additional_data=False
        )
    }


def test_entries_stand_on_pages_and_in_robustbenchs_fields(tmp_path):
    suite = Suite(targets={"a": 0.5, "b": 0.2}, attacks={"pgd": 1.0}, matrices=("white-box",), stochastic=(), n=40)
    keys = suite.write(Store(tmp_path / "run"))
    (name,) = {
        cell.record.target["defense"]["name"]
        for cell in load(source_of(tmp_path / "run")).cells
        if cell.record.target["label"] == "b"
    }
    run = {name: ModelEntry(authors="Roe et al. 2029", link="https://example.org/b")}
    reporting.write_manifest(tmp_path / "run", keys, "", run)
    (tmp_path / "e.toml").write_text(FILE, encoding="utf-8")
    written = reporting.report(tmp_path / "run", to=tmp_path / "rb", format="robustbench", entries=tmp_path / "e.toml")
    infos = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in written}
    a, b = infos["a-0-3.json"], infos["b-0-3.json"]
    assert (a["name"], a["authors"], a["venue"]) == ("A <b>paper</b>", "Doe, J.", "ICML 2030")
    assert (a["link"], a["additional_data"]) == ("https://example.org/a?x=1&y=2", True)
    assert (b["name"], b["authors"], b["venue"], b["additional_data"]) == ("b", "Roe et al. 2029", "", None)
    reporting.publish(tmp_path / "run", to=tmp_path / "site", entries=tmp_path / "e.toml")
    page = (tmp_path / "site/models/a.html").read_text(encoding="utf-8")
    assert "A &lt;b&gt;paper&lt;/b&gt;" in page
    assert '<a href="https://example.org/a?x=1&amp;y=2">' in page
    assert "<dt>Parameters</dt><dd>11,173,962</dd>" in page
    assert "<dt>Additional data</dt><dd>yes</dd>" in page
    assert '<a href="https://example.org/b">' in (tmp_path / "site/models/b.html").read_text(encoding="utf-8")


def test_damaged_entries_of_a_run_are_left_out():
    assert kept_entries.kept({"a": {"link": "file:///x"}, "b": {"venue": "V"}, "c": 3}) == {"b": ModelEntry(venue="V")}
    assert kept_entries.kept(["a"]) == {}


def test_an_entry_of_no_model_is_told_in_one_line(tmp_path, caplog):
    suite = Suite(targets={"a": 0.5, "pgd-linf": 0.2}, attacks={"pgd": 1.0}, matrices=("white-box",), stochastic=(), n=40)
    reporting.write_manifest(tmp_path / "run", suite.write(Store(tmp_path / "run")))
    text = '["a"]\nvenue = "V"\n["pgd_linf"]\nvenue = "V"\n["zzz"]\nvenue = "V"\n["attack pgd"]\nvenue = "V"\n'
    (tmp_path / "e.toml").write_text(text, encoding="utf-8")
    reporting.report(tmp_path / "run", to=tmp_path / "rb", format="robustbench", entries=tmp_path / "e.toml")
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "is called pgd_linf: did you mean pgd-linf?" in said[0]
    assert "is called zzz, which are of a, attack pgd, pgd-linf" in said[1]
