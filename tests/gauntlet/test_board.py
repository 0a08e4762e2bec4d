"""The gauntlet's attack board on a model of a moment: each attack has a row, what failed is named, prices are measured."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from advbench.registry import registry
from tests.gauntlet.board import markdown, prices, standing
from tests.gauntlet.models import MODELS
from tests.gauntlet.peers import ours, registered, theirs
from tests.gauntlet.training import Problem


@pytest.fixture
def faced():
    """A small network and images that it gets right."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 4))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
        parameter.requires_grad_(False)
    x = torch.rand(8, 1, 4, 4, generator=generator)
    return Problem(MODELS["saturating"], model, "", x, model(x).argmax(dim=1), torch.arange(8))


def test_every_attack_has_its_row_and_its_visits(faced):
    attacks = ["pgd(steps=5)", "fmn(steps=10)", "ddn(steps=10)"]
    with registered():
        attacks += [name for name in theirs("l2") if name == "pyautoattack(part='apgd-ce')"]  # where it is installed
    found = standing(faced, "l2", 0.3, attacks)
    assert found.failures == ()
    assert {cell.record.attack["label"] for cell in found.cells} == set(attacks)
    for cell in found.cells:
        assert (cell.examples.visited == cell.examples.visited).all()
        assert cell.record.counts["forwards"] > 0
    text = markdown([found], "Attacks")
    assert all(name in text for name in ("Visited", "Cost of watching", "pgd(steps=5)"))


def test_attacks_of_ours_and_theirs_know_the_norm():
    with registered():
        for norm in ("linf", "l2", "l1"):
            names = [*ours(norm), *theirs(norm)]
            assert {"pgd", "apgd-ce", "fmn", "fab", "auto", "autoattack"} <= set(names)
            assert len(set(names)) == len(names)
    assert "pyautoattack" not in registry.attacks


def test_prices_are_of_the_same_work_with_and_without(faced):
    rows = prices(faced, "linf", 0.1, repeats=1)
    assert [name for name, _, _ in rows] == ["fgsm", "pgd", "apgd-ce", "square(queries=200)", "fmn", "deepfool"]
    assert all(bare > 0 and seen > 0 for _, bare, seen in rows)
