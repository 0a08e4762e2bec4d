"""Several runs in one report: joined where that is fair, told apart where it is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from advbench.records import reporting
from advbench.reports.cells import load
from advbench.reports.merge import merge, run_names
from advbench.reports.standings import ranked_boards
from advbench.results.archive import pack, unpack
from advbench.results.store import Store


@pytest.fixture
def run(tmp_path, make_suite):
    """`run(name, ...)`: the cells of a small run; its records keep keys of their own by `weights`."""

    def make(name, *, weights="", attack=None, **changes):
        make_suite(**changes).write(Store(tmp_path / name))
        cells = load(Store(tmp_path / name))
        return replace(cells, cells=tuple(_changed(cell, name, weights, attack) for cell in cells.cells))

    return make


def _changed(cell, name, weights, attack):
    if not weights and not attack:
        return cell
    record = cell.record
    key = (record.key[:-8] + "".join(f"{ord(letter):02x}" for letter in (name + "xxxx")[:4]))[:64]
    return replace(
        cell,
        record=replace(
            record,
            key=key,
            weights_sha256=weights or record.weights_sha256,
            attack=record.attack | (attack or {}),
        ),
    )


def _boards(**runs):
    return {board.title: {one.label: one.rank for one in board.standings} for board in ranked_boards(merge(runs))}


def test_runs_against_the_same_attacks_share_a_board(run):
    found = _boards(one=run("one", targets={"a": 0.5}), two=run("two", targets={"b": 0.9, "c": 0.1}))
    assert found == {"linf ≤ 0.3 on mnist": {"b": 1, "a": 2, "c": 3}}


def test_runs_against_other_attacks_keep_boards_of_their_own(run):
    found = _boards(one=run("one", targets={"a": 0.5}), two=run("two", targets={"b": 0.9}, attacks={"fgsm": 0.8}))
    assert found == {"linf ≤ 0.3 on mnist (one)": {"a": 1}, "linf ≤ 0.3 on mnist (two)": {"b": 1}}


def test_one_attack_name_with_other_arguments_or_source_joins_nothing(run):
    for attack in ({"arguments": {"steps": 1}}, {"source_hash": "another version"}):
        found = _boards(one=run("one", targets={"a": 0.5}), two=run("two", targets={"b": 0.9}, attack=attack))
        assert len(found) == 2


def test_two_matrices_of_the_same_models_make_one_board(run):
    found = _boards(
        white=run("white", targets={"a": 0.5, "b": 0.9}),
        black=run("black", targets={"a": 0.5, "b": 0.9}, matrices=("black-box",)),
    )
    assert list(found) == ["linf ≤ 0.3 on mnist"]
    assert all(rank is not None for rank in found["linf ≤ 0.3 on mnist"].values())


def test_a_third_run_can_make_two_comparable(run):
    """b has only the white-box matrix until its black-box cells come, whatever the order of the folders."""
    parts = {
        "both": run("both", targets={"a": 0.5}, matrices=("white-box", "black-box")),
        "white": run("white", targets={"b": 0.9}),
    }
    assert len(_boards(**parts)) == 2
    parts["black"] = run("black", targets={"b": 0.9}, matrices=("black-box",))
    assert list(_boards(**parts)) == ["linf ≤ 0.3 on mnist"]


def test_a_transfer_from_other_sources_is_another_attack(run):
    one = run("one", targets={"a": 0.5, "b": 0.7}, matrices=("transfer",))
    two = run("two", targets={"c": 0.5, "d": 0.7}, matrices=("transfer",))
    assert len(_boards(one=one, two=two)) == 2


def test_a_cell_that_both_runs_have_counts_once_and_a_scored_one_wins(run):
    one = run("one", targets={"a": 0.5}, failing=[("white-box", "a", "pgd")])
    two = run("two", targets={"a": 0.5})
    merged = merge({"one": one, "two": two})
    assert len(merged.cells) == len(two.cells)
    assert all(cell.examples is not None for cell in merged.cells)
    assert {cell.origin for cell in merged.cells if cell.record.attack["label"] == "pgd"} == {"two"}


def test_a_missing_cell_that_the_other_run_has_is_not_missing(run):
    one, two = run("one", targets={"a": 0.5}), run("two", targets={"b": 0.5})
    lost = two.cells[0].record.key
    merged = merge({"one": replace(one, missing=(lost, "f" * 64)), "two": two})
    assert merged.missing == ("f" * 64,)


def test_other_models_of_the_same_name_are_told_apart(run):
    one = run("one", targets={"a": 0.5, "b": 0.9})
    two = run("two", targets={"a": 0.5}, weights="other")
    assert list(_boards(one=one, two=two).values()) == [{"b": 1, "a [one]": 2, "a [two]": 2}]
    by_architecture = run("net", targets={"a": 0.5}, weights="third", architecture="roth/other")
    (labels,) = _boards(one=run("one", targets={"a": 0.5}), net=by_architecture).values()
    assert set(labels) == {"a / gu2014/n200-200-10", "a / roth/other", "b"}


def test_sources_are_renamed_with_their_models(run):
    one = run("one", targets={"a": 0.5, "b": 0.9}, matrices=("transfer",))
    two = run("two", targets={"a": 0.5, "b": 0.9}, matrices=("transfer",), weights="other")
    for cell in merge({"one": one, "two": two}).cells:
        assert cell.record.source["label"].endswith(f"[{cell.origin}]")


def test_names_of_runs_are_as_short_as_they_can_be():
    assert run_names(["out/a", "out/b"]) == ["a", "b"]
    assert run_names(["x/out", "y/out/", "./z"]) == ["x/out", "y/out", "z"]


def test_the_report_of_several_folders_needs_a_place(tmp_path, make_suite):
    for name, target in (("one", "a"), ("two", "b")):
        make_suite(targets={target: 0.5}).write(Store(tmp_path / name))
    folders = [tmp_path / "one", tmp_path / "two"]
    with pytest.raises(ValueError, match="give --to DIR"):
        reporting.report(*folders)
    with pytest.raises(ValueError, match="got none at"):
        reporting.report(tmp_path / "one", tmp_path / "nothing", to=tmp_path / "all")
    paths = reporting.report(*folders, to=tmp_path / "all")
    assert [path.parent for path in paths] == [tmp_path / "all"] * 3
    text = paths[0].read_text(encoding="utf-8")
    assert text.count("## Leaderboard") == 1
    assert not (tmp_path / "one" / "leaderboard.md").exists()
    stamps = [Path(path).stat().st_mtime_ns for path in paths]
    assert [path.stat().st_mtime_ns for path in reporting.report(*folders, to=tmp_path / "all")] == stamps


def test_an_archive_of_records_is_reported_like_the_folder_that_it_was_packed_from(tmp_path, make_suite):
    make_suite().write(Store(tmp_path / "one"))
    packed = tmp_path / "one.tar.xz"
    pack(Store(tmp_path / "one"), packed)
    with pytest.raises(ValueError, match="Expected a folder for an archive, got none: give --to DIR"):
        reporting.report(packed)
    reporting.report(packed, to=tmp_path / "unpacked")
    reporting.report(tmp_path / "one", to=tmp_path / "plain", every=True)
    tables = [(tmp_path / name / "results.csv").read_text() for name in ("unpacked", "plain")]
    assert tables[0] == tables[1]
    with pytest.raises(FileNotFoundError, match="Expected an archive of records at"):
        reporting.report(tmp_path / "nothing.tar.xz", to=tmp_path / "all")


def test_a_report_to_an_archive_packs_the_records_of_one_folder(tmp_path, make_suite):
    make_suite().write(Store(tmp_path / "one"))
    packed, again = tmp_path / "one.tar.xz", tmp_path / "again.tar.xz"
    assert reporting.report(tmp_path / "one", to=packed) == [packed]
    assert reporting.report(packed, to=again) == [again]
    assert packed.read_bytes() == again.read_bytes()
    assert unpack(packed, Store(tmp_path / "back")) == Store(tmp_path / "one").keys()
    reporting.write_manifest(tmp_path / "one", Store(tmp_path / "one").keys()[:2])
    reporting.report(tmp_path / "one", to=again)
    assert len(unpack(again, Store(tmp_path / "few"))) == 2
    for arguments, got in (({"format": "csv"}, "the format csv"), ({}, "2 folders")):
        outs = [tmp_path / "one"] if arguments else [tmp_path / "one", tmp_path / "back"]
        with pytest.raises(ValueError, match=f"Expected one folder and no format for an archive of records, got {got}"):
            reporting.report(*outs, to=packed, **arguments)
