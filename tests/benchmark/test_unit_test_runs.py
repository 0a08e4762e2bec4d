"""The attack unit test in whole runs and evaluations: its task, the record, the flag, and what it leaves alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import advbench
from advbench.cli.app import app
from advbench.config import make_config
from advbench.plan.plan import make_plan
from advbench.results.store import Store
from advbench.results.unit_tests import unit_test_of
from advbench.tasks import unit_test as kind
from advbench.tasks.artefacts import artefact
from advbench.tasks.unit_test import read_unit_test

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def small(settings):
    """White-box cells of a plain and a random model, and a query attack, with unit tests."""
    own = {"matrix": "white-box", "defense": "none,input-noise(passes=2)", "attack": "pgd(steps=10),square(queries=30)"}
    return settings | own | {"unit_test": True, "unit_test_images": 8}


def test_a_run_keeps_what_its_attacks_found_in_the_records_and_shows_it(small):
    result = advbench.run(**small)
    assert result.exit_code == 0
    store = Store(result.out)
    found = {}
    for key in result.cells:
        record = store.read(key)
        if record.matrix != "oblivious":
            found[record.target["label"], record.attack["label"]] = unit_test_of(record)
    assert len(found) == 4
    for outcome in found.values():
        assert outcome.images == 8
        assert outcome.built + sum(outcome.unbuilt.values()) == 8
        assert outcome.built >= 6
        assert outcome.features.startswith("100 features")
    plain = found["none", "pgd(steps=10)"]
    assert (plain.built, plain.found, plain.reason) == (8, 8, "")
    assert plain.probes == {"faithful": 8}
    assert 10 <= plain.points <= 13
    noisy = found["input-noise(passes=2)", "pgd(steps=10)"]
    assert set(noisy.probes) == {"faithful", "base"}
    assert set(found["none", "square(queries=30)"].probes) == {"itself"}
    assert found["none", "square(queries=30)"].points in (30, 31)
    text = (result.out / "leaderboard.md").read_text()
    assert "Unit tests of the attacks" in text
    again = advbench.run(**small)
    assert again.ran == 0


def test_a_unit_test_changes_no_number_and_is_not_in_a_default_run(small):
    plans = {wanted: make_plan(make_config(**(small | {"unit_test": wanted}))) for wanted in (True, False)}
    kinds = {wanted: [task.kind for task in plan.tasks.values()] for wanted, plan in plans.items()}
    assert kinds[True].count("unit-test") == 4
    assert "unit-test" not in kinds[False]
    assert set(plans[False].tasks) - set(plans[True].tasks) <= set(plans[False].cells)
    crafts = {wanted: {key for key, task in plan.tasks.items() if task.kind == "craft"} for wanted, plan in plans.items()}
    assert crafts[True] == crafts[False]
    assert not make_config().unit_test


def test_other_settings_are_another_unit_test(small):
    def keys(**changes):
        plan = make_plan(make_config(**(small | changes)))
        return {key for key, task in plan.tasks.items() if task.kind == "unit-test"}

    before = keys()
    for change in ({"unit_test_images": 13}, {"epsilon": "0.03"}, {"attack": "pgd(steps=11),square(queries=31)"}):
        assert not before & keys(**change), change
    assert keys() == before


def test_a_unit_test_that_breaks_costs_no_cell(small, monkeypatch):
    def breaks(*arguments, **keywords):
        raise RuntimeError("no luck")

    monkeypatch.setattr(kind, "unit_test", breaks)
    result = advbench.run(**(small | {"defense": "none", "attack": "fgsm", "backend": "threading"}))
    assert result.exit_code == 0
    (record,) = [Store(result.out).read(key) for key in result.cells]
    outcome = unit_test_of(record)
    assert (outcome.built, outcome.share, outcome.why_not) == (0, None, "RuntimeError: no luck")
    assert "not applicable" in (result.out / "leaderboard.md").read_text()


def test_the_file_of_a_unit_test_gives_everything_back(small, tmp_path):
    plan = make_plan(make_config(**(small | {"defense": "none", "attack": "pgd(steps=2)"})))
    result = advbench.run(**(small | {"defense": "none", "attack": "pgd(steps=2)"}))
    (key,) = [key for key, task in plan.tasks.items() if task.kind == "unit-test"]
    found = read_unit_test(artefact("unit-test", key, result.out))
    (record,) = [Store(result.out).read(cell) for cell in result.cells]
    assert found == unit_test_of(record)
    assert found.found + len(found.missed) == found.built
    assert set(found.missed) <= set(Store(result.out).load(result.cells[0])[1].index.tolist())


def test_no_unit_test_without_a_norm(small):
    with pytest.raises(ValueError, match="unit_test"):
        make_config(norm="none", unit_test=True)


# --- evaluations


class Net(nn.Module):
    """A small network whose gradients point the wrong way if `masked`."""

    def __init__(self, masked):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Softplus())
        self.head, self.masked = nn.Linear(64, 3), masked

    def forward(self, x):
        return self.head(self.body(x.detach() + (x.detach() - x) if self.masked else x))


def problem(masked):
    generator = torch.Generator().manual_seed(2)
    model, x = Net(masked), 0.2 + 0.6 * torch.rand(16, 1, 8, 8, generator=generator)
    return model, x, model(x).argmax(dim=1)


def test_an_evaluation_of_a_masked_model_fails_its_unit_test_and_an_honest_one_passes():
    settings = {"epsilon": 0.1, "attack": "pgd(steps=20)", "unit_test": True, "batch": 16}
    honest, masked = (advbench.evaluate(*problem(wrong), **settings) for wrong in (False, True))
    assert "failed unit test" not in [flag["name"] for flag in honest.flags]
    assert "failed unit test" in [flag["name"] for flag in masked.flags]
    assert {row["attack"]: row["unit_test"] for row in honest.rows()}["pgd(steps=20)"] == 1.0
    assert {row["attack"]: row["unit_test"] for row in masked.rows()}["pgd(steps=20)"] < 0.5
    assert masked.summary()["robust"]["upper_bound"]
    assert ", failed" in str(masked)


def test_an_evaluation_without_one_says_nothing_of_it():
    plain = advbench.evaluate(*problem(False), epsilon=0.1, attack="pgd(steps=3)", batch=16)
    assert "unit test" not in str(plain)
    assert all(attack["unit_test"] is None for attack in plain.summary()["attacks"])


def test_a_random_model_of_the_users_is_tested_through_its_logits_or_said_to_be_untestable():
    class Random(Net):
        def forward(self, x):
            return super().forward(x + 0.02 * torch.randn_like(x))

    model = Random(False)
    x = problem(False)[1]
    y = Net(False)(x).argmax(dim=1)
    named = {
        "attack": "pgd(steps=3),fmn(steps=3)",
        "stochastic": True,
        "draws": 1,
        "unit_test": True,
        "unit_test_images": 16,
    }
    result = advbench.evaluate(model, x, y, epsilon=0.1, batch=16, **named)
    record, _ = result.cells[0]
    outcome = unit_test_of(record)
    assert outcome.reason == ""
    assert outcome.features.endswith(" logits")
    assert outcome.built + sum(outcome.unbuilt.values()) == 16
    assert np.isfinite(outcome.found)


# --- the command


def test_the_commands_know_it():
    runner = CliRunner()
    for command in ("run", "evaluate"):
        text = " ".join(runner.invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output.split())
        assert "--unit-test" in text
        assert "--unit-test-images" in text
    found = runner.invoke(
        app,
        [
            "run",
            "--unit-test",
            "--dry-run",
            "--matrix",
            "white-box",
            "--defense",
            "none",
            "--attack",
            "fgsm",
            "--n-examples",
            "8",
        ],
    )
    assert found.exit_code == 0, found.output
    assert "attacks to unit-test" in found.output
    assert " 1 " in next(line for line in found.output.splitlines() if "attacks to unit-test" in line)
