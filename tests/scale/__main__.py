"""What runs of many cells cost: ``python -m tests.scale [--folder DIR] [--python PYTHON ...] [ROW ...]``.

Prints for each row processor time (user and system), the most memory of one process, and the size of the report; once for
each interpreter, so that two checkouts can be compared. Records are made once in the folder. Times on a machine that does
other work are too long; memory is not. No test runs it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from advbench.results.archive import pack
from advbench.results.store import Store
from tests.scale.records import Scale, folder

MODELS, ATTACKS = 100, 20
HEAT_MAP = (
    "import numpy as np; from advbench.reports.figures import heat_map; "
    "names = [f'model {i:03d}' for i in range(100)]; "
    "heat_map(np.full((100, 20), 0.5), rows=names, columns=names[:20], words=[[''] * 20] * 100, caption='', alt='')"
)


def settings(place: Path, matrix: str, defenses: int, attacks: int, seeds: int, more: str = "") -> Path:
    """A configuration of so many cells (for the transfer matrix, by the square of the defenses)."""
    named = ", ".join(f'"weight-decay(coefficient={i + 1}e-5)"' for i in range(defenses))
    with_steps = ", ".join(f'"pgd(steps={i + 1})"' for i in range(attacks))
    path = place / f"{matrix}-{defenses}-{attacks}-{seeds}.toml"
    path.write_text(
        f'dataset = "digits"\nmatrix = "{matrix}"\nbatch = 128\nseed = {list(range(seeds))}\n'
        f"defense = [{named}]\nattack = [{with_steps}]\n{more}"
    )
    return path


def dry_run(matrix: str, defenses: int, attacks: int, seeds: int) -> Callable[[Path, Path], list[str]]:
    """The plan of so many cells."""
    return lambda place, out: [
        *("-m", "advbench", "run", str(settings(place, matrix, defenses, attacks, seeds))),
        *("--dry-run", "--out", str(out)),
    ]


def reported(scale: Scale, command: str = "report") -> Callable[[Path, Path], list[str]]:
    """The report, or site, of so many records."""
    return lambda place, out: ["-m", "advbench", command, str(folder(place, scale)), "--to", str(out)]


def archived(place: Path, out: Path) -> list[str]:
    """The report of an archive."""
    scale = Scale(models=25, attacks=ATTACKS, pictures=0)
    packed = place / "archive.tar.xz"
    if not packed.exists():
        pack(Store(folder(place, scale)), packed)
    return ["-m", "advbench", "report", str(packed), "--to", str(out)]


def small_run(place: Path, out: Path) -> list[str]:
    """A whole run of 300 cells, with its report, in one process."""
    more = 'epochs = 1\ntrain-examples = 200\nn-examples = 100\narchitecture = ["gu2014/n100-100-10"]\n'
    return ["-m", "advbench", "run", str(settings(place, "white-box", 100, 3, 1, more)), "--jobs", "1", "--out", str(out)]


ROWS: dict[str, Callable[[Path, Path], list[str]]] = {
    "plan-white-box": dry_run("white-box", 250, 20, 20),
    "plan-transfer": dry_run("transfer", 100, 10, 1),
    "report-2000": reported(Scale(models=MODELS, attacks=ATTACKS)),
    "report-2000-mnist": reported(Scale(models=MODELS, attacks=ATTACKS, images=1000, pictures=28)),
    "report-10000": reported(Scale(models=5 * MODELS, attacks=ATTACKS)),
    "site-2000": reported(Scale(models=MODELS, attacks=ATTACKS), "publish"),
    "heat-map": lambda place, out: ["-c", HEAT_MAP],
    "run-300": small_run,
    "archive-500": archived,
}
"""The rows of the table. 100,000 cells are planned, and 2,000 and 10,000 records reported."""


def measured(command: Sequence[str], cache: Path) -> tuple[float, float]:
    """Processor seconds of a command with all that it starts, and the most memory of one of its processes, in MB."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ADVBENCH_CACHE": str(cache)}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"Expected {' '.join(command)} to end well, got status {status}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def size_of(out: Path) -> str:
    """The size of the first page, and of all files of a report."""
    if not out.is_dir():
        return ""
    pages = [out / name for name in ("leaderboard.html", "report.html") if (out / name).is_file()]
    ours = [path for path in out.rglob("*") if path.is_file() and "records" not in path.parts and "store" not in path.parts]
    total = sum(path.stat().st_size for path in ours) / 1e6
    return f"{sum(page.stat().st_size for page in pages) / 1e6:.1f} MB of {total:.1f} MB" if pages else ""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.scale", description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", choices=[*ROWS, []], default=[], help=", ".join(ROWS))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "advbench-scale")
    parser.add_argument("--python", action="append", help="an interpreter that has advbench, by default this one")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    print("| row | interpreter | processor time | memory | first page of all files |\n|---|---|---:|---:|---:|")
    for row in asked.rows or ROWS:
        for python in asked.python or [sys.executable]:
            with tempfile.TemporaryDirectory(dir=asked.folder) as fresh:
                out = Path(fresh) / "out"
                command = [python, *ROWS[row](asked.folder, out)]
                seconds, memory = measured(command, Path(fresh) / "cache")
                print(f"| {row} | {python} | {seconds:.1f} s | {memory:,.0f} MB | {size_of(out)} |", flush=True)
                shutil.rmtree(out, ignore_errors=True)


if __name__ == "__main__":
    main()
