"""What a run of many cells costs, by counting what is done and what memory it takes at most; never by time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from advbench.records.reporting import report
from advbench.reports import standings
from advbench.reports.cells import load
from advbench.reports.write import write_reports
from advbench.results.archive import pack
from advbench.results.store import Store
from tests.scale.records import Scale, write

MEGABYTE = 2**20


def peak_of(code: str) -> float:
    """The most memory, in MB, that a fresh process held while it ran `code`."""
    # Not getrusage: its peak is at first that of the process that started this one.
    said = "\nprint(next(int(row.split()[1]) / 1024 for row in open('/proc/self/status') if row.startswith('VmHWM')))"
    found = subprocess.run([sys.executable, "-c", code + said], capture_output=True, text=True, check=True)
    return float(found.stdout.split()[-1])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Four models and three attacks, with images."""
    store = Store(tmp_path_factory.mktemp("small"))
    write(store, Scale(models=4, attacks=3, images=40))
    return store


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks of memory are read in /proc")
def test_a_heat_map_is_drawn_without_looking_at_the_whole_figure():
    peak = peak_of(
        "import numpy as np; from advbench.reports.figures import heat_map\n"
        "names = [f'model {i:03d}' for i in range(100)]\n"
        "heat_map(np.full((100, 20), 0.5), rows=names, columns=names[:20], words=[[''] * 20] * 100, caption='', alt='')"
    )
    assert peak < 400  # 3,400 where the labels are looked at


def test_images_stay_on_the_disk_and_equal_outcomes_are_held_once(small, monkeypatch):
    read: list[str] = []
    gallery = Store.gallery
    monkeypatch.setattr(Store, "gallery", lambda self, key: read.append(key) or gallery(self, key))
    cells = load(small).cells
    assert not read
    assert cells[0].gallery is not None
    assert read == [cells[0].record.key]
    assert len({id(cell.examples.label) for cell in cells}) == 1
    assert len({cell.examples.report_correct.tobytes() for cell in cells}) > 1


def test_all_forms_of_a_report_show_one_derivation(small, tmp_path, monkeypatch):
    derived = []
    boards = standings.boards
    monkeypatch.setattr(standings, "boards", lambda cells: derived.append(len(cells)) or boards(cells))
    (tmp_path / "records").symlink_to(small.folder)
    write_reports(tmp_path)
    assert derived == [12]


def test_an_archive_is_read_in_place(tmp_path, monkeypatch):
    """The files that are flushed to the disk are those of the report, however many records there are."""
    flushed: dict[int, int] = {}
    for attacks in (2, 6):
        store, packed = Store(tmp_path / f"{attacks}"), tmp_path / f"{attacks}.tar.xz"
        write(store, Scale(models=2, attacks=attacks, images=40, pictures=0))
        pack(store, packed)
        calls: list[int] = []
        monkeypatch.setattr(os, "fsync", calls.append)
        monkeypatch.setattr("tempfile.mkdtemp", lambda *_, **__: pytest.fail("unpacked"))
        report(packed, to=tmp_path / f"to-{attacks}")
        monkeypatch.undo()
        report(store.folder.parent, to=tmp_path / f"folder-{attacks}")
        for name in ("leaderboard.html", "leaderboard.md", "results.csv"):
            from_archive, from_folder = (Path(tmp_path / f"{place}-{attacks}" / name) for place in ("to", "folder"))
            assert from_archive.read_bytes() == from_folder.read_bytes()
        flushed[attacks] = len(calls)
    assert flushed[2] == flushed[6]
