"""The published site and the exports, as files."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
import pytest

from advbench.config import make_config, to_toml
from advbench.records import reporting
from advbench.reports.cells import Cells, load
from advbench.reports.model_page import models
from advbench.reports.reproduce import reproduction
from advbench.reports.robustbench import model_infos
from advbench.reports.site import site
from advbench.reports.standings import ranked_boards
from advbench.results.store import Store

SETTINGS = 'dataset = "mnist"\nnorm = "linf"\n'


class Links(HTMLParser):
    """Links, anchors, inline scripts and styles, and attributes that would run code."""

    def __init__(self, text):
        super().__init__()
        self.links, self.anchors, self.handlers, self.inline = [], set(), [], {"script": [], "style": []}
        self.policy, self.inside = "", None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.inside = tag if tag in self.inline else None
        self.anchors |= {found["id"]} if found.get("id") else set()
        self.links += [found["href"]] if tag == "a" else []
        self.handlers += [name for name in found if name.startswith("on") or name == "style"]
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = found["content"]

    def handle_data(self, data):
        if self.inside:
            self.inline[self.inside].append(data)

    def handle_endtag(self, tag):
        self.inside = None


def masked(cells, label):
    """The cells, with every transfer to `label` from another model successful, and all attacks on itself in vain."""

    def change(cell):
        record = cell.record
        if record.target["label"] != label:
            return cell
        correct = cell.examples.clean_correct
        if record.source is not None and record.source["label"] != label:
            correct = np.zeros_like(correct)
        far = np.full(len(correct), 0.9)
        return replace(
            cell, examples=replace(cell.examples, select_correct=correct, report_correct=correct, distance_linf=far)
        )

    return Cells(tuple(map(change, cells.cells)))


@pytest.fixture(scope="module")
def cells(tmp_path_factory, make_suite):
    store = Store(tmp_path_factory.mktemp("run"))
    suite = make_suite(
        n=60,
        targets={"a": 0.55, "b(base='a')": 0.8, "<i>c": 0.1},
        attacks={"pgd": 1.0, "deepfool": 0.9},
        matrices=("white-box", "transfer"),
        failing=[("white-box", "<i>c", "pgd")],
    )
    suite.write(store)
    return masked(load(store), "a")


@pytest.fixture(scope="module")
def files(cells):
    return site(cells, title="Ours & theirs", settings={"": SETTINGS})


@pytest.fixture(scope="module")
def pages(files):
    return {name: Links(text) for name, text in files.items() if name.endswith(".html")}


def test_the_site_has_an_index_a_page_for_each_model_the_full_report_and_data(files):
    found = {name for name in files if name.startswith("models/")}
    assert found == {"models/a.html", "models/b-base-a.html", "models/i-c.html"}
    assert {"index.html", "report.html", ".nojekyll", "data/cells.csv", "data/leaderboard.json"} <= set(files)


def test_every_link_leads_to_a_page_or_a_file_of_the_site(files, pages):
    followed = 0
    for name, page in pages.items():
        for link in page.links:
            path, _, anchor = link.partition("#")
            parts: list[str] = []
            for part in (PurePosixPath(name).parent / path).parts if path else PurePosixPath(name).parts:
                parts = parts[:-1] if part == ".." else [*parts, part]
            target = "/".join(parts)
            assert target in files, (name, link)
            assert not anchor or anchor in pages[target].anchors, (name, link)
            followed += bool(path)
    assert followed > 10


def test_pages_allow_their_own_script_and_style_alone(pages):
    for page in pages.values():
        assert page.handlers == []
        assert page.policy.startswith("default-src 'none'; ")
        assert "unsafe" not in page.policy
        for text in (*page.inline["script"], *page.inline["style"]):
            assert f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in page.policy


def test_names_are_escaped_on_every_page(files):
    for name, text in files.items():
        if name.endswith(".html"):
            assert "<i>" not in text, name


def test_a_flagged_model_is_marked_and_its_number_an_upper_bound(files, cells):
    (board,) = ranked_boards(cells)
    (flag,) = next(one.flags for one in board.standings if one.label == "a")
    assert flag.name == "black-box beats white-box"
    assert re.search(r'href="models/a\.html".*?≤ \d+\.\d%</span> <small>[^<]*1 flag</small>', files["index.html"], re.S)
    page = files["models/a.html"]
    assert flag.finding in page
    assert str(flag.n) in page
    assert "No symptom of masked gradients" in files["models/b-base-a.html"]


def test_an_unranked_model_says_what_it_lacks(files):
    assert "incomplete" in files["models/i-c.html"]
    assert "unranked, without white-box pgd" in files["models/i-c.html"]


def test_a_models_page_has_a_row_for_each_of_its_cells(files, cells):
    for model in models(ranked_boards(cells), cells.cells):
        page = files["models/" + {"a": "a", "b(base='a')": "b-base-a", "<i>c": "i-c"}[model.label] + ".html"]
        table = page[page.index("Every attack on this model") :]
        assert table[: table.index("</table>")].count("<tr>") == len(model.cells) + 1


def test_the_data_are_the_boards_and_the_cells(files, cells):
    (board,) = ranked_boards(cells)
    (written,) = json.loads(files["data/leaderboard.json"])
    assert [one["model"] for one in written["standings"]] == [one.label for one in board.standings]
    for one, standing in zip(written["standings"], board.standings, strict=True):
        assert one["robust_accuracy"]["value"] == standing.robust.estimate.value
        assert one["upper_bound_only"] is (standing.rank is None or bool(standing.flags))
    assert len(pd.read_csv(io.StringIO(files["data/cells.csv"]))) == len(cells.cells)


def test_how_to_reproduce_is_the_runs_own_settings(files):
    assert files["data/run-a.toml"] == SETTINGS
    page = files["models/a.html"]
    assert "<code>advbench run run.toml</code>" in page
    assert 'href="../data/run-a.toml"' in page


def test_settings_written_as_toml_are_the_settings(tmp_path):
    config = make_config(
        dataset="digits",
        defense="none,pgd-linf(steps=10),input-noise(base='pgd-linf', passes=2)",
        attack="fgsm,pgd(steps=3)",
        norm="l2",
        epsilon="0.5,1/3",
        seed="0,7",
        clip=False,
        n_examples=20,
        matrix="white-box,transfer",
        learning_rate=1e-5,
        out=tmp_path,
        jobs=3,
    )
    (tmp_path / "run.toml").write_text(to_toml(config), encoding="utf-8")
    again = make_config(tmp_path / "run.toml")
    assert again.model_dump(exclude={"out", "jobs"}) == config.model_dump(exclude={"out", "jobs"})


def test_without_settings_the_command_is_read_from_the_records(cells):
    records = [cell.record for cell in cells.cells if cell.record.target["label"] == "b(base='a')"]
    found = reproduction(records, "")
    assert found.settings == ""
    assert found.command == (
        "advbench run --matrix white-box,transfer --dataset mnist --architecture gu2014/n200-200-10 "
        """--defense 'b(base='"'"'a'"'"'),<i>c,a' --attack deepfool,pgd --norm linf --epsilon 0.3 --seed 0 --n-examples 60"""
    )
    own = replace(
        records[0],
        target=records[0].target
        | {
            "defense": {"name": "own", "arguments": {"weights": "net.pt", "mean": [0.5], "std": [0.25], "stochastic": True}},
            "architecture": {"name": "own:net.py:make", "arguments": {}},
        },
    )
    assert reproduction([own], SETTINGS).command.startswith(
        "advbench evaluate net.py:make --dataset mnist --weights net.pt --mean 0.5 --std 0.25 --attack "
    )
    for name, text in (
        ("net.py:make", "--std 0.25 --outputs probabilities --attack "),
        ("held:m", "outputs='probabilities')"),
    ):
        architecture = {"name": f"own:{name}", "arguments": {"outputs": "probabilities"}}
        assert text in reproduction([replace(own, target=own.target | {"architecture": architecture})], SETTINGS).command


def test_robustbench_reads_its_own_keys(cells):
    (board,) = ranked_boards(cells)
    infos = {path: json.loads(info) for path, info in model_infos(board).items()}
    assert set(infos) == {"mnist/Linf/a-0-3.json", "mnist/Linf/b-base-a-0-3.json"}, "the unranked model is left out"
    required = {
        "link",
        "name",
        "authors",
        "additional_data",
        "number_forward_passes",
        "dataset",
        "venue",
        "architecture",
        "eps",
    }
    for info in infos.values():
        assert required | {"clean_acc", "reported", "external", "footnote", "unreliable"} == set(info)
        assert 0 <= float(info["external"]) <= float(info["clean_acc"]) <= 100
        assert info["eps"] == "0.3"
    assert infos["mnist/Linf/a-0-3.json"]["unreliable"] is True
    assert infos["mnist/Linf/b-base-a-0-3.json"]["unreliable"] is False
    name = {"label": "autoattack", "name": "autoattack"}
    renamed = [
        replace(cell, record=replace(cell.record, attack=cell.record.attack | name))
        for cell in cells.cells
        if cell.record.attack["label"] == "pgd"
    ]
    (attacked,) = ranked_boards(Cells(tuple(renamed)))
    info = json.loads(model_infos(attacked)["mnist/Linf/b-base-a-0-3.json"])
    standing = next(one for one in attacked.standings if one.label == "b(base='a')")
    assert float(info["autoattack_acc"]) == pytest.approx(
        100 * standing.by_attacker["white-box", "autoattack", ""], abs=0.01
    )


def test_robustbench_refuses_other_norms(cells):
    def l1(cell):
        return replace(cell, record=replace(cell.record, threat=cell.record.threat | {"norm": "l1"}))

    (board,) = ranked_boards(Cells(tuple(map(l1, cells.cells))))
    with pytest.raises(ValueError, match="Expected a linf or l2 board"):
        model_infos(board)


MAGIC = {"png": b"\x89PNG\r\n", "pdf": b"%PDF-", "svg": b"<?xml"}


def test_figures_and_cells_are_exported_as_files(tmp_path, make_suite):
    make_suite(targets={"a": 0.5, "b": 0.7}, attacks={"pgd": 1.0, "deepfool": 0.9}).write(Store(tmp_path / "run"))
    for format, magic in MAGIC.items():
        paths = reporting.report(tmp_path / "run", to=tmp_path / format, format=format)
        stems = {path.stem for path in paths}
        assert {"white-box-linf-0-3-on-mnist", "epsilon-linf-on-mnist", "distances-linf-on-mnist"} <= stems
        assert "cost-against-robustness-linf-0-3-on-mnist" in stems
        assert all(path.read_bytes().startswith(magic) for path in paths)
        first = {path.name: path.read_bytes() for path in paths}
        if format == "svg":
            again = reporting.report(tmp_path / "run", to=tmp_path / "again", format=format)
            assert {path.name: path.read_bytes() for path in again} == first, "the same records give the same bytes"
    (table,) = reporting.report(tmp_path / "run", to=tmp_path / "csv", format="csv")
    assert len(pd.read_csv(table)) == 4
    (info, _) = reporting.report(tmp_path / "run", to=tmp_path / "rb", format="robustbench")
    assert info.parent == tmp_path / "rb" / "model_info" / "mnist" / "Linf"
    with pytest.raises(ValueError, match="give --to DIR"):
        reporting.report(tmp_path / "run", format="pdf")
    with pytest.raises(ValueError, match="one of svg, png, pdf, csv, robustbench, latex"):
        reporting.report(tmp_path / "run", to=tmp_path, format="docx")


def test_publishing_again_removes_what_is_gone_and_nothing_else(tmp_path, make_suite):
    make_suite(targets={"a": 0.5, "b": 0.7}, attacks={"pgd": 1.0}).write(Store(tmp_path / "one"))
    make_suite(targets={"b": 0.7}, attacks={"pgd": 1.0}).write(Store(tmp_path / "two"))
    to = tmp_path / "site"
    reporting.publish(tmp_path / "one", to=to)
    (to / "CNAME").write_text("example.org")
    (tmp_path / "kept.txt").write_text("not the site's")
    listed = json.loads((to / ".advbench-site.json").read_text())
    (to / ".advbench-site.json").write_text(json.dumps([*listed, "../kept.txt", str(tmp_path / "kept.txt")]))
    paths = reporting.publish(tmp_path / "two", to=to, title="Another title")
    assert "<h1>Another title</h1>" in (to / "index.html").read_text(encoding="utf-8")
    assert {path.relative_to(to).as_posix() for path in paths} == {
        path.relative_to(to).as_posix() for path in to.rglob("*") if path.is_file()
    } - {"CNAME", ".advbench-site.json"}
    assert not (to / "models" / "a.html").exists()
    assert Path(tmp_path / "kept.txt").exists()
    with pytest.raises(ValueError, match="Expected a folder with records"):
        reporting.publish(tmp_path / "three", to=to)
