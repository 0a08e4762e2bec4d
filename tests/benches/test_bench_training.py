"""Steps of all training-time defenses beside plain training: ``advbench bench training``."""

from __future__ import annotations

import pytest
import torch

from advbench.benches import training
from advbench.benches.bench import run, table
from advbench.clocks import single_thread
from advbench.defenses.training.deep_contractive import DeepContractive

CPU = torch.device("cpu")


def test_every_defense_that_is_one_training_is_there_with_its_penalty():
    found = training.defenses()
    assert set(training.PROMISED) | {"none", "smooth-gradient", "pgd-linf", "trades", "sparse-pretraining"} <= found.keys()
    assert not {"input-noise", "gaussian-blur", "magnet"} & found.keys()
    assert isinstance(found["deep-contractive"], DeepContractive)
    assert found["deep-contractive"].coefficient > 0  # without one nothing would be searched for, and nothing penalised
    assert all(getattr(each, "epsilon", 0.0) is not None for each in found.values())


@pytest.mark.parametrize("name", ["none", "deep-contractive", "robust-linf", "sparse-pretraining", "smooth-gradient", "sgr"])
def test_a_step_trains_by_the_defenses_objective_and_leaves_the_weights(name):
    call = training.stepper(training.defenses()[name], "gu2014/n100-100-10", CPU)
    first = call()
    losses = [first] if isinstance(first, torch.Tensor) else first
    assert len(losses) == 2 if name == "sparse-pretraining" else len(losses) == 1
    assert all(torch.isfinite(loss) and loss > 0 for loss in losses)
    if name in ("none", "robust-linf", "sparse-pretraining"):  # others move a state of their own
        again = call()
        again = [again] if isinstance(again, torch.Tensor) else again
        assert [float(loss) for loss in again] == pytest.approx([float(loss) for loss in losses])


def test_ratios_are_to_plain_training(monkeypatch):
    """Seven steps of ascent cost more than one, and one more than none; each on half a second of measurements."""
    chosen = {
        name: training.defenses()[name] for name in ("none", "weight-decay", "robust-linf", "pgd-linf", "gaussian-noise")
    }
    monkeypatch.setattr(training, "defenses", lambda: chosen)
    with single_thread():
        found = {row.case.rpartition(", ")[2]: row for row in training.steps("gu2014/n100-100-10", CPU, seconds=0.5)}
    assert found.keys() == chosen.keys() - {"none"}
    assert 1 < found["robust-linf"].ratio < found["pgd-linf"].ratio
    assert found["robust-linf"].bar == 2.0
    assert found["pgd-linf"].bar is None
    assert found["robust-linf"].against == "plain training"
    assert found["gaussian-noise"].against == "plain training with weight decay"
    assert found["gaussian-noise"].reference_seconds == found["weight-decay"].seconds


@pytest.mark.slow
def test_robust_optimisation_costs_at_most_twice_plain_training(request):
    if not request.config.getoption("benchmark_enable"):
        pytest.skip("a measurement: run with --benchmark-enable")
    with single_thread():
        rows = list(run("training", CPU))
    print(table(rows))
    assert all(row.holds for row in rows if "robust-" in row.case)


def test_a_step_of_wame_stands_beside_one_of_adam():
    row = training.optimizer(CPU, weights=200_000)
    assert row.seconds > 0 < row.reference_seconds
    assert (row.bar, row.against) == (1.5, "a step of Adam")
