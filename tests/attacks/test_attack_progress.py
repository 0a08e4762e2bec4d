"""What attacks tell while they run: which examples are broken, and which part of an ensemble is at work."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks import progress
from advbench.attacks.access import WhiteBox
from advbench.attacks.autoattack import AutoAttack
from advbench.attacks.ensemble import named
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import ThreatModel, Untargeted

N = 24


def net() -> nn.Module:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 4)).double()
    for parameter in model.parameters():
        parameter.data *= 2
    return model


def told(attack, threat: ThreatModel) -> tuple[Tensor, list[str], Tensor, WhiteBox]:
    """Which examples were said to be broken, the parts in order, which are, and the access."""
    model, x = net(), torch.rand(N, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = model(x).argmax(dim=1)
    broken, parts = torch.zeros(N, dtype=torch.bool), []

    def listen(part: str, rows: Tensor, achieved: Tensor) -> None:
        assert rows.shape == achieved.shape
        broken[rows] |= achieved
        parts.append(part)

    rng = ExampleRNG.make(0, "attack", torch.arange(100, 100 + N))
    with progress.heard_by(listen), attack.knowledge(model, rng) as access:
        x_adv = attack(access, x, Untargeted(y), threat, rng.fork("attack"))
    return broken, list(dict.fromkeys(parts)), model(x_adv).argmax(dim=1) != y, access


@pytest.mark.parametrize(
    "text",
    ["pgd(steps=5)", "apgd-ce(steps=5)", "apgd-t(steps=5)", "square(queries=40)", "mi-fgsm"],
)
def test_what_is_told_to_be_broken_is(text):
    broken, _, expected, _ = told(named(text), ThreatModel("linf", 0.15))
    assert 0 < expected.sum() < N
    assert torch.equal(broken, expected)


@pytest.mark.parametrize(
    "text",
    [
        "ddn(steps=8)",
        "fmn(steps=8)",
        "deepfool(steps=8)",
        "fab-t(steps=5)",
        "carlini-wagner(steps=20)",
        "lbfgs(c=0.05, steps=20)",
    ],
)
def test_a_minimal_norm_attack_tells_of_every_adversarial(text):
    broken, _, expected, _ = told(named(text), ThreatModel("l2", None))
    assert expected.any()
    assert torch.equal(broken, expected)


def test_the_parts_of_an_ensemble_are_named():
    broken, parts, expected, _ = told(AutoAttack(steps=4, queries=20), ThreatModel("linf", 0.1))
    assert parts == ["", "APGD", "APGDT", "FABT", "Square"]
    assert torch.equal(broken, expected)


def test_nobody_is_told_outside_and_a_listener_leaves_with_its_block():
    heard = []
    with progress.heard_by(lambda *told: heard.append(told)):
        progress.tell(torch.arange(2), torch.ones(2, dtype=torch.bool))
        with pytest.raises(OverflowError), progress.part("x"):
            raise OverflowError
        progress.tell(torch.arange(2), torch.ones(2, dtype=torch.bool))
    progress.tell(torch.arange(2), torch.ones(2, dtype=torch.bool))
    assert [one[0] for one in heard] == ["", ""]
