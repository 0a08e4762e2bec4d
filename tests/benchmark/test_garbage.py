"""What `advbench gc` removes, and what it leaves."""

from __future__ import annotations

import shutil

import pytest
from typer.testing import CliRunner

import advbench
from advbench.cli.app import app
from advbench.config import make_config
from advbench.engine.leases import Leases, Owner
from advbench.plan.plan import make_plan
from advbench.records.garbage import garbage, remove
from advbench.results.store import Store
from advbench.tasks.craft import read_images

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def small(settings):
    return settings | {"matrix": "white-box", "defense": "none", "attack": "fgsm,pgd(steps=3)"}


def crafts(out):
    return {path.stem for path in (out / "store" / "craft").iterdir()}


def stored(out):
    return {path.relative_to(out) for path in (out / "store").rglob("*") if path.is_file()}


def test_what_the_last_run_and_its_records_need_stays(small):
    out = advbench.run(**small).out
    before = stored(out)
    assert garbage(out).files == ()
    remove(garbage(out))
    assert stored(out) == before


def test_results_of_former_settings_go_unless_a_record_names_them(small):
    """Ten steps, then three: the images of ten stay while their record does; then they and what was made with them go."""
    former = advbench.run(**small | {"attack": "pgd(steps=10)", "n_examples": 20})
    (record,) = [Store(former.out).read(key) for key in former.cells]
    named = set(record.details["crafts"])
    last = advbench.run(**small)
    own = {key for key, task in make_plan(make_config(**small)).tasks.items() if task.kind == "craft"}
    found = garbage(last.out)
    assert {path.parent.name for path in found.files} == {"clean", "diagnose"}  # of 20 images, which no record names
    remove(found)
    assert crafts(last.out) == own | named
    assert read_images(*named, last.out).shape == (20, 1, 28, 28)
    shutil.rmtree(Store(last.out).path(record.key))
    found = garbage(last.out)
    assert {path.stem for path in found.files} == named
    assert found.bytes == sum(path.stat().st_size for path in found.files)
    remove(found)
    assert crafts(last.out) == own
    assert advbench.run(**small).ran == 0


def test_blocks_of_former_settings_go_and_those_of_an_interrupted_attack_stay(small):
    plan = make_plan(make_config(**small))
    out = advbench.run(**small).out
    key = next(key for key, task in plan.tasks.items() if task.kind == "craft")
    for name in (key, "0" * 64):
        folder = out / "store" / "blocks" / name
        folder.mkdir(parents=True)
        (folder / "0-16.npz").write_bytes(b"block")
    found = garbage(out)
    assert [(path.parent.name, path.name) for path in found.files] == [("blocks", "0" * 64)]
    assert found.bytes == 5


def test_a_folder_in_which_somebody_works_is_left_alone(small):
    out = advbench.run(**small).out
    (out / "store" / "craft" / f"{'0' * 64}.npz").write_bytes(b"old")
    other = Leases(out, Owner("elsewhere", "another machine", 1, "1", "token"))
    other.take("task")
    result = CliRunner().invoke(app, ["gc", str(out)])
    assert result.exit_code == 2
    assert "nobody at work" in result.stderr
    other.give_back("task")
    shown = CliRunner().invoke(app, ["gc", str(out), "--dry-run"])
    assert shown.stdout.splitlines()[0].endswith(f"{'0' * 64}.npz")
    assert (out / "store" / "craft" / f"{'0' * 64}.npz").exists()
    assert CliRunner().invoke(app, ["gc", str(out)]).exit_code == 0
    assert not (out / "store" / "craft" / f"{'0' * 64}.npz").exists()


def test_a_folder_without_a_run_is_refused(tmp_path):
    result = CliRunner().invoke(app, ["gc", str(tmp_path)])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
