"""How often the processor waits, counted on the processor: ``advbench bench waits``; see also `tests/pretend`."""

from __future__ import annotations

import pytest
import torch

from advbench.attacks.waiting import on_host
from advbench.benches import training, waits
from advbench.benches.bench import BENCHES, table
from advbench.defenses.training.plain import Plain

CPU = torch.device("cpu")
X = torch.tensor([1.0, 0.0, 2.0])


@pytest.mark.parametrize(
    ("asks", "kinds"),
    [
        (lambda: X.sum().item(), {"item": 1}),
        (lambda: [1 for each in X if each > 0], {"item": 3}),
        (lambda: (X > 0).nonzero(), {"nonzero": 1}),
        (lambda: X[X > 0], {"nonzero": 1}),
        (lambda: X.clone().__setitem__(X > 0, 0.0), {}),
        (lambda: X.clone().__setitem__(X > 0, X[:2]), {"nonzero": 1}),
        (lambda: torch.where(X > 0), {"nonzero": 1}),
        (lambda: X.cpu(), {"copy to cpu": 1}),
        (lambda: X.tolist(), {"copy to cpu": 1}),
        (lambda: torch.equal(X, X), {"equal": 1}),
        (lambda: torch.tensor([1.0], device=X.device), {"copy to device": 1}),
        (lambda: X.new_tensor([1.0]), {"copy to device": 1}),
        (lambda: torch.tensor([1.0]), {}),
        (lambda: X.masked_fill(X > 0, 2).where(X > 1, X).sum(), {}),
        (lambda: X[torch.tensor([0, 2])], {}),
    ],
)
def test_what_would_make_the_processor_wait_is_counted(asks, kinds):
    with waits.counted(CPU) as found:
        asks()
    assert {kind: count for kind, count in found.items() if count} == kinds


def test_inside_the_way_is_an_accelerators_and_afterwards_the_processors():
    with waits.counted(CPU) as found:
        assert not on_host(X)
    assert on_host(X)
    assert X.sum().item() == 3
    assert found.total() == 0
    with pytest.raises(KeyError), waits.counted(CPU):
        {}["nothing"]
    assert on_host(X)


def test_a_row_says_how_often_a_step_waits(monkeypatch):
    """The radius is asked for once more in every step; the bar is missed where it is none."""
    row = waits.of_attack("pgd", "l2", "steps", CPU)
    assert (row.seconds, row.reference_seconds, row.bar, row.holds) == (6, 6, 1.0, True)
    project = waits.registry.attacks.create(waits.Spec("pgd")).__call__.__globals__["balls"].project
    monkeypatch.setattr(
        "advbench.attacks.balls.project", lambda x_adv, x, threat: project(x_adv + float(x_adv.sum() * 0), x, threat)
    )
    row = waits.of_attack("pgd", "l2", "steps", CPU)
    assert (row.seconds, row.holds) == (12, False)
    assert "2 | 1, missed" in " ".join(table([row]).split())


class Asking(Plain):
    """Looks at its loss in every step."""

    def objective(self, model, x, y, step):
        terms = super().objective(model, x, y, step)
        assert all(float(term.detach()) > 0 for term in terms.values())
        return terms


def test_every_attack_and_every_training_has_a_row(monkeypatch):
    assert BENCHES["waits"] == "advbench.benches.waits:rows"
    monkeypatch.setattr(training, "defenses", lambda: {"none": Plain(), "asking": Asking()})
    monkeypatch.setattr(waits.registry.attacks, "names", lambda: ["fgsm", "ddn", "lbfgs", "hop-skip-jump", "auto"])
    found = {row.case: row for row in waits.rows(CPU)}
    assert list(found) == [
        "ddn, l2",
        "lbfgs, l2",
        "hop-skip-jump, linf",
        "hop-skip-jump, l2",
        f"{waits.NETWORK}, none",
        f"{waits.NETWORK}, asking",
    ]
    assert [found[f"{waits.NETWORK}, {name}"].ratio for name in ("none", "asking")] == [0, 1]
    assert found["ddn, l2"].ratio == 1
    assert all(row.ratio > 0 and row.bar is None for name, row in found.items() if "hop" in name or "lbfgs" in name)
