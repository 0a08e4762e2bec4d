"""Whole runs: three matrices, resume after SIGKILL, the same records for any number of jobs, failing cells."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import advbench
from advbench.config import make_config
from advbench.plan.plan import make_plan
from advbench.registry import registry
from advbench.results.store import Store

pytestmark = pytest.mark.usefixtures("cache")


def same(one, other):
    """Two records with their arrays, but for what was measured."""
    facts = [{**dataclasses.asdict(store.read(key)), "measured": None, "details": None} for store, key in (one, other)]
    arrays = [dataclasses.asdict(store.examples(key)) for store, key in (one, other)]
    assert facts[0] == facts[1]
    for name, values in arrays[0].items():
        np.testing.assert_array_equal(values, arrays[1][name], err_msg=name)


def test_a_run_scores_every_cell_and_writes_the_reports(settings):
    result = advbench.run(**settings)
    assert result.exit_code == 0
    frame = result.frame
    assert len(frame) == len(result.cells) == 9 + 3 + 9 + 27  # three of the attacker who ignores the noise
    assert set(frame["status"]) == {"ok"}
    for name in ("leaderboard.md", "leaderboard.html", "results.csv"):
        assert (settings["out"] / name).stat().st_size > 500
    again = advbench.run(**settings)
    assert again.ran == 0
    assert again.cells == result.cells


def test_a_run_leaves_no_global_state_changed(settings):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    threads = torch.get_num_threads()
    advbench.run(**settings | {"matrix": "white-box", "attack": "fgsm"})
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.rand(3), expected)


def test_records_are_equal_for_any_number_of_jobs(settings, tmp_path):
    runs = [
        advbench.run(**settings | {"out": tmp_path / name, "jobs": jobs, "backend": backend, "fresh": True})
        for name, jobs, backend in (("one", 1, "loky"), ("two", 2, "loky"), ("threads", 2, "threading"))
    ]
    assert all(run.exit_code == 0 for run in runs)
    for other in runs[1:]:
        assert other.cells == runs[0].cells
        for key in other.cells:
            same((Store(runs[0].out), key), (Store(other.out), key))


CODE = """
import advbench, sys
advbench.run(out=sys.argv[1], **{settings})
"""


@pytest.mark.slow
def test_a_killed_run_continues_and_gives_the_same_records(settings, tmp_path):
    """SIGKILL to the whole process group, again and again, at moments spread over the run."""
    whole = advbench.run(**settings | {"out": tmp_path / "whole"})
    plain = {name: value for name, value in settings.items() if name != "out"} | {"jobs": 2}
    killed, out = 0, tmp_path / "killed"
    environment = os.environ | {"ADVBENCH_CACHE": str(tmp_path / "other-cache")}
    for patience in (3, 4, 5, 6, 8, 10, 12, 300, 300):
        command = [sys.executable, "-c", CODE.format(settings=plain), str(out)]
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        deadline = time.monotonic() + patience
        before = finished(tmp_path)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
            if patience < 300 and finished(tmp_path) > before + 5:
                break
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        killed += 1
    assert process.returncode == 0
    assert killed >= 2
    for key in whole.cells:
        same((Store(whole.out), key), (Store(out), key))


def finished(folder: Path) -> int:
    """Artefacts of the killed run that lie whole in their places."""
    return len(
        [
            *folder.glob("killed/records/*/record.json"),
            *folder.glob("killed/store/*/*.npz"),
            *folder.glob("other-cache/models/*.safetensors"),
        ]
    )


def test_a_failing_cell_is_a_row_and_stops_nothing(settings, monkeypatch):
    monkeypatch.setitem(registry.attacks.own, "broken", f"{__name__}:Broken")
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or module_of_this_file())
    result = advbench.run(**settings | {"matrix": "white-box,transfer", "attack": "fgsm,broken"})
    assert result.exit_code == 1
    frame = result.frame
    failed = frame[frame["attack"] == "broken"]
    assert len(failed) == 3 + 1 + 9
    assert set(failed["status"]) == {"error"}
    assert failed["reason"].str.contains("no such luck").all()
    assert set(frame[frame["attack"] == "fgsm"]["status"]) == {"ok"}
    assert "incomplete" in (settings["out"] / "leaderboard.md").read_text()


@dataclasses.dataclass(frozen=True)
class Broken:
    """An attack that raises, for tests."""

    norms = frozenset({"linf"})
    minimal_norm = False

    @property
    def knowledge(self):
        from advbench.attacks.access import WhiteBox

        return WhiteBox

    def __call__(self, access, x, goal, threat, rng):
        raise RuntimeError("no such luck")


def module_of_this_file():
    import types

    module = types.ModuleType(__name__)
    module.Broken = Broken
    return module


def test_a_model_that_cannot_be_trained_fails_its_cells_only(settings, monkeypatch):
    from advbench.defenses.training import plain

    def fail(*args, **kwargs):
        raise FloatingPointError("Training diverged at epoch 1")

    monkeypatch.setattr("advbench.defenses.training.weight_decay.WeightDecay.fit", fail)
    assert plain
    result = advbench.run(**settings | {"matrix": "transfer", "defense": "none,weight-decay", "attack": "fgsm"})
    frame = result.frame.set_index(["source", "target"])
    assert frame.loc[("none", "none"), "status"] == "ok"
    assert "diverged" in frame.loc[("weight-decay", "none"), "reason"]
    assert (frame["status"] == "error").sum() == 3


def test_fresh_does_everything_again(settings):
    small = settings | {"matrix": "white-box", "defense": "none", "attack": "fgsm"}
    first = advbench.run(**small)
    assert advbench.run(**small).ran == 0
    assert advbench.run(**small, fresh=True).ran == first.ran


def test_a_changed_hyper_parameter_does_only_what_changed(settings):
    small = settings | {"matrix": "white-box", "defense": "none", "attack": "pgd(steps=2)"}
    advbench.run(**small)
    plan = make_plan(make_config(**small | {"attack": "pgd(steps=2),pgd(steps=4)"}))
    assert sorted(task.kind for task in plan.pending()) == ["craft", "score"]


def test_a_black_box_cell_counts_its_queries_and_its_fidelity(settings):
    result = advbench.run(**settings | {"matrix": "black-box", "defense": "none,input-noise(passes=2)", "attack": "fgsm"})
    for key in result.cells:
        record = Store(result.out).read(key)
        substitute = record.details["substitute"]
        assert substitute["queries"] == 20 * 2 ** settings["substitute_rounds"]
        assert 0 <= substitute["fidelity"] <= 1
        assert record.source["kind"] == "substitute"
