"""The budget of passes and the visited images, from the settings to the records and the report."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import torch
from torch import nn

import advbench
from advbench.__main__ import main
from advbench.api import run
from advbench.config import make_config
from advbench.plan.keys import Keys, key_of, keyed
from advbench.plan.plan import make_plan
from advbench.results.store import Store
from advbench.tasks.craft import CraftContent

SMALL = {
    "dataset": "digits",
    "matrix": "white-box",
    "architecture": "gu2014/n100-100-10",
    "defense": "none",
    "train_examples": 300,
    "epochs": 2,
    "n_examples": 20,
    "batch": 10,
    "device": "cpu",
    "jobs": 1,
}


@pytest.fixture(scope="module")
def problem():
    """A small network, and images that it gets right."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    x = torch.rand(12, 1, 4, 4, generator=generator)
    return model, x, model(x).argmax(dim=1)


def cells(result):
    return {record.attack["label"]: (record, examples) for record, examples in result.cells}


ATTACKS = "pgd(steps=20),fmn(steps=20),square(queries=60),hop-skip-jump(queries=90)"


def test_a_large_budget_changes_no_bit_and_a_small_one_is_kept(problem):
    model, x, y = problem
    free, large, one, few = (
        cells(advbench.evaluate(model, x, y, epsilon=0.1, attack=ATTACKS, batch=6, budget=budget))
        for budget in (None, 10**6, 1, 9)
    )
    for name, (record, examples) in free.items():
        assert "budget" not in record.attack
        other, same = large[name]
        assert other.attack["budget"] == 10**6
        assert other.counts == record.counts
        for field in dataclasses.fields(examples):
            assert np.array_equal(getattr(examples, field.name), getattr(same, field.name), equal_nan=field.name != "index")
        assert np.isnan(examples.visited).all()
        for bound, cell in ((1, one[name]), (9, few[name])):
            counts = cell[0].counts
            assert cell[0].attack["budget"] == bound
            assert counts["forwards"] + counts["backwards"] <= bound * 12
            assert counts["queries"] <= counts["forwards"]
    assert one["square(queries=60)"][0].counts["queries"] == one["square(queries=60)"][0].counts["forwards"] == 12
    robust = {name: [each[name][1].report_correct.sum() for each in (one, few, free)] for name in free if name[0] == "p"}
    assert robust["pgd(steps=20)"] == sorted(robust["pgd(steps=20)"], reverse=True)
    assert robust["pgd(steps=20)"][0] > robust["pgd(steps=20)"][-1]


def test_visited_images_stand_in_the_records_of_models_that_are_not_random(problem):
    model, x, y = problem

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner(x + 0.01 * torch.randn_like(x))

    given = {"epsilon": 0.1, "attack": "pgd(steps=20),fmn(steps=20)", "batch": 6, "visited": True}
    for name, (record, examples) in cells(advbench.evaluate(model, x, y, **given)).items():
        assert not np.isnan(examples.visited).any()
        assert record.measured["watch_seconds"] >= 0
        if name.startswith("fmn"):
            assert examples.visited == pytest.approx(examples.distance_linf, rel=1e-6)
        else:
            assert np.array_equal(np.isfinite(examples.visited), examples.report_correct == 0)
    for record, examples in cells(advbench.evaluate(Noisy(), x, y, stochastic=True, draws=2, **given)).values():
        assert np.isnan(examples.visited).all()
        assert "watch_seconds" not in record.measured


def test_a_random_model_is_attacked_within_its_budget(problem):
    model, x, y = problem

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner(x + 0.01 * torch.randn_like(x))

    given = {"epsilon": 0.1, "attack": "pgd(steps=20),square(queries=60)", "batch": 6, "stochastic": True, "draws": 4}
    for record, _ in cells(advbench.evaluate(Noisy(), x, y, budget=30, **given)).values():
        crafts = len(record.details["crafts"])
        assert record.counts["forwards"] + record.counts["backwards"] <= 30 * 12 * crafts


def plan_of(out, **settings):
    return make_plan(make_config(**SMALL | {"out": out, "attack": "pgd(steps=3)"} | settings), measure=False)


def test_keys_without_a_budget_are_what_they_were(tmp_path):
    [content] = [task.content for task in plan_of(tmp_path).tasks.values() if isinstance(task.content, CraftContent)]
    told = keyed(content)
    assert not {"passes", "visited"} & set(told["content"])
    text = json.dumps(told, sort_keys=True, separators=(",", ":"))
    assert key_of(content) == Keys().of(content) == hashlib.sha256(text.encode()).hexdigest()
    others = [dataclasses.replace(content, **change) for change in ({"passes": 5}, {"passes": 6}, {"visited": True})]
    assert all(key_of(other) == Keys().of(other) for other in others)
    assert len({key_of(each) for each in (content, *others)}) == 4


def test_a_file_of_settings_runs_with_a_budget_and_tells_it(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("budget = 6\nvisited = true\n")
    out = tmp_path / "out"
    result = run(file, **SMALL, attack="pgd(steps=10),fmn(steps=10)", out=out)
    assert result.exit_code == 0
    store = Store(out)
    for key in result.cells:
        record, examples = store.read(key), store.examples(key)
        assert record.attack["budget"] == 6
        assert record.counts["forwards"] + record.counts["backwards"] <= 6 * 20
        assert not np.isnan(examples.visited).any()
    [report] = [path.read_text() for path in result.reports if path.suffix == ".md"]
    assert "The budget of each attack is 6 for each image" in report
    assert "Visited" in report
    assert "Cost of watching" in report


@pytest.mark.parametrize("given", [["--budget", "0"], ["--budget", "-3"], ["--budget", "many"], ["--budget", "2.5"]])
@pytest.mark.parametrize("command", [["run"], ["evaluate", "torchvision:resnet18", "--dataset", "digits"]])
def test_bad_budgets_are_one_line(command, given, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["advbench", *command, *given, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_budget_goes_with_single_precision():
    with pytest.raises(ValueError, match="Expected no `budget` with precision bfloat16"):
        make_config(budget=5, precision="bfloat16")
    with pytest.raises(ValueError, match="`budget`: input should be greater than or equal to 1, got 0"):
        make_config(budget=0)
