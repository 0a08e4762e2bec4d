"""The wheel holds exactly the tree: every module, template and table, under the package's own name, and nothing else."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_wheel_holds_exactly_the_tree(tmp_path):
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("not a checkout")
    source = tmp_path / "source"
    for path in tracked():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes((ROOT / path).read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert found == expected()


def expected() -> set[str]:
    """The files of the mapped folders by their names in the package."""
    folders = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    packages = {folder: package.replace(".", "/") for package, folder in folders.items()}
    names = set()
    for path in tracked():
        if path.parts[0] in {folder.split("/")[0] for folder in packages} and "published" not in path.parts:
            names.add(f"{packages[path.parent.as_posix()]}/{path.name}")
    return names


def tracked() -> list[Path]:
    """The files of the checkout that git knows or would add."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [Path(line) for line in listing.stdout.splitlines() if (ROOT / line).is_file()]
