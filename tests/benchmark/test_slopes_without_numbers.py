"""Gradients that are NaN or infinite at black pixels: the numbers are those of closed forms all the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from advbench.attacks.access import BESIDE, WhiteBox
from advbench.attacks.auto import Auto
from advbench.attacks.deepfool import DeepFool
from advbench.attacks.fab import FAB
from advbench.attacks.fmn import FMN
from advbench.attacks.pgd import PGD
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import ThreatModel, Untargeted, cross_entropy
from advbench.registry import registry
from advbench.user_models.target import evaluate

N, EPSILON, GAMMA = 24, 0.03, 1 / 2.2


@pytest.fixture(autouse=True)
def _own_cache(cache):
    """Compute batches are remembered in a cache of the test's own."""


def nan(x: Tensor) -> Tensor:
    return x.sqrt().square()


def infinite(x: Tensor) -> Tensor:
    return x**GAMMA


def plain(x: Tensor) -> Tensor:
    return x


class Net(nn.Module):
    """Two logits, the second of which is linear in m(x), for a map m of single pixels."""

    def __init__(self, pixels) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, generator=torch.Generator().manual_seed(3)))
        self.pixels = pixels

    def forward(self, x: Tensor) -> Tensor:
        score = (self.pixels(x).flatten(1) - 0.4) @ self.weight
        return torch.stack((torch.zeros_like(score), score), dim=1)


def problem(pixels) -> tuple[Tensor, Tensor]:
    """Images three quarters of whose pixels are black, and the model's labels."""
    generator = torch.Generator().manual_seed(4)
    x = 0.3 + 0.3 * torch.rand(N, 3, 2, 2, generator=generator)
    x[torch.rand(x.shape, generator=generator) < 3 / 4] = 0
    with torch.no_grad():
        return x, Net(pixels)(x).argmax(dim=1)


def robust(pixels, x: Tensor, epsilon: float = EPSILON) -> Tensor:
    """Which images withstand every perturbation: the worst of each pixel is at an end of its interval, as m is monotonic."""
    weight = Net(pixels).weight.detach().double()
    low, here, high = (pixels(each.double()).flatten(1) for each in ((x - epsilon).clamp(min=0), x, x + epsilon))
    lead = (here - 0.4) @ weight
    gains = torch.stack(((low - here) * weight, (high - here) * weight))
    worst = torch.where(lead > 0, lead + gains.amin(dim=0).sum(dim=1), -lead - gains.amax(dim=0).sum(dim=1))
    assert worst.abs().min() > 1e-3, "no image lies on the edge"
    return worst > 0


@pytest.mark.parametrize("pixels", [nan, infinite])
@pytest.mark.parametrize(
    "attack", [PGD(steps=20, random_start=False), FMN(steps=60), DeepFool(), FAB(steps=40), Auto(steps=10, queries=300)]
)
def test_attacks_leave_no_more_than_the_closed_form(pixels, attack):
    x, y = problem(pixels)
    threat = ThreatModel("linf", None if attack.minimal_norm else EPSILON)
    rng = ExampleRNG.make(0, "attack", torch.arange(N))
    with WhiteBox(Net(pixels), rng) as access:
        x_adv = attack(access, x.clone(), Untargeted(y), threat, rng)
    with torch.no_grad():
        fooled = Net(pixels)(x_adv).argmax(dim=1) != y
    left = ~(fooled & ((x_adv - x).abs().flatten(1).amax(dim=1) <= EPSILON * (1 + 1e-5)))
    expected = robust(pixels, x)
    assert 0 < int(expected.sum()) < N
    assert torch.equal(left, expected)
    assert (access.ledger.nonfinite > 0).any()


@pytest.mark.parametrize("attack", [FMN(steps=30), DeepFool(), FAB(steps=20)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_distances_are_those_of_the_model_with_finite_slopes(attack, norm):
    x, y = problem(plain)
    found = []
    for pixels in (nan, plain):
        rng = ExampleRNG.make(0, "attack", torch.arange(N))
        with WhiteBox(Net(pixels), rng) as access:
            x_adv = attack(access, x.clone(), Untargeted(y), ThreatModel(norm, None), rng)
        found.append((x_adv - x).flatten(1).norm(dim=1, p=float(norm[1:])))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)


def test_slopes_beside_take_the_place_of_those_that_are_no_numbers():
    """At black pixels the slope of x^(1/2.2) is that half a grey level above; elsewhere nothing changes, nor is counted."""
    x, y = problem(infinite)
    rng = ExampleRNG.make(0, "attack", torch.arange(N))
    x[0] = 0.5
    with WhiteBox(Net(infinite), rng) as access:
        found = access.loss_gradient(x, Untargeted(y), lambda logits, goal: logits[:, 1])
        _, pull = access.pullback(x)
        rows = pull(torch.tensor([[[0.0, 1.0]]]).expand(1, N, 2))
    expected = GAMMA * x.where(x > 0, BESIDE) ** (GAMMA - 1) * Net(infinite).weight.detach().view(1, 3, 2, 2)
    torch.testing.assert_close(found.gradient, expected)
    torch.testing.assert_close(rows[0], expected)
    broken = (x == 0).flatten(1).any(dim=1).long()
    assert access.ledger.nonfinite.tolist() == (2 * broken).tolist()
    assert access.ledger.forwards.tolist() == (2 + 2 * broken).tolist()
    assert access.ledger.backwards.tolist() == (2 + 2 * broken).tolist()


def test_what_is_no_number_beside_either_stays_and_hides_nothing_finite():
    class Blind(nn.Module):
        """The left half of the pixels has no slope anywhere."""

        def forward(self, x: Tensor) -> Tensor:
            left, right = x[..., :1], x[..., 1:]
            score = (0 * left).sqrt().flatten(1).sum(dim=1) + 2 * right.sqrt().square().flatten(1).sum(dim=1)
            return torch.stack((torch.zeros_like(score), score), dim=1)

    x = torch.zeros(2, 1, 2, 2)
    with WhiteBox(Blind(), ExampleRNG.make(0, "attack", torch.arange(2))) as access:
        gradient = access.loss_gradient(x, Untargeted(torch.zeros(2).long()), lambda logits, goal: logits[:, 1]).gradient
    assert gradient[..., 0].isnan().all()
    torch.testing.assert_close(gradient[..., 1], torch.full((2, 1, 2), 2.0))


def test_an_infinite_loss_gradient_of_a_huge_image_is_no_broken_slope():
    """A sum of gradients may overflow where each is finite: nothing is asked again."""

    class Steep(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack((3e38 * x[:, 0, 0, 0], 3e38 * x[:, 0, 0, 1]), dim=1)

    x = torch.zeros(1, 1, 1, 2)
    with WhiteBox(Steep(), ExampleRNG.make(0, "attack", torch.arange(1))) as access:
        gradient = access.loss_gradient(
            x, Untargeted(torch.zeros(1).long()), lambda logits, goal: logits.sum(dim=1)
        ).gradient
    assert gradient.isfinite().all()
    assert access.ledger.forwards.tolist() == [1]
    assert access.ledger.nonfinite.tolist() == [0]


@pytest.mark.parametrize("pixels", [nan, infinite])
def test_an_evaluation_ends_at_the_closed_form_and_attacks_without_gradients_too(pixels):
    x, y = problem(pixels)
    found = evaluate(Net(pixels), x, y, epsilon=EPSILON, attack="pgd(steps=20),fmn(steps=40)", batch=N)
    labels = [attack["label"] for attack in found.summary()["attacks"]]
    assert labels == ["pgd(steps=20)", "fmn(steps=40)", "square"]
    assert found.summary()["examples"]["robust"] == robust(pixels, x).double().tolist()
    assert found.summary()["examples"]["by_attack"]["pgd(steps=20)"] == robust(pixels, x).double().tolist()
    assert "non-finite gradients" in {flag["name"] for flag in found.flags}
    assert any("NaN or infinite in places" in note for note in found.notes)


def test_an_ensemble_with_queries_needs_no_other_attack():
    x, y = problem(nan)
    found = evaluate(Net(nan), x, y, epsilon=EPSILON, attack="auto(steps=6,queries=40,survey=20),fmn(steps=20)", batch=N)
    assert len(found.summary()["attacks"]) == 2
    assert found.summary()["examples"]["robust"] == robust(nan, x).double().tolist()
    np.testing.assert_array_equal(found.summary()["examples"]["robust"], robust(plain, x).double())


def test_finite_slopes_add_no_attack():
    x, y = problem(plain)
    found = evaluate(Net(plain), x, y, epsilon=EPSILON, attack="pgd(steps=20),fmn(steps=40)", batch=N)
    assert [attack["label"] for attack in found.summary()["attacks"]] == ["pgd(steps=20)", "fmn(steps=40)"]
    assert found.summary()["examples"]["robust"] == robust(plain, x).double().tolist()
    assert found.notes == ()


def test_gradients_of_both_sides_of_a_detector_are_mended():
    from advbench.attacks.access import DetectorView

    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nan(x).flatten(1).mean(dim=1) - 0.3

    x, y = problem(nan)
    rng = ExampleRNG.make(0, "attack", torch.arange(N))
    with WhiteBox(Net(nan), rng, detector=DetectorView(Mean(), y)) as access:
        sides = access.sides(x, Untargeted(y), cross_entropy)
    with WhiteBox(Net(plain), rng) as access:
        twin = access.sides(x, Untargeted(y), cross_entropy)
    torch.testing.assert_close(sides.uphill, twin.uphill, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(sides.downhill, torch.full_like(x, -1 / 12))


NETS = """
from torch import nn

class Net(nn.Module):
    def __init__(self, pixels):
        super().__init__()
        self.layers, self.pixels = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), pixels

    def forward(self, x):
        return self.layers(self.pixels(x))

def nan():
    return Net(lambda x: x.sqrt().square())

def plain():
    return Net(lambda x: x)
"""


def test_the_command_ends_at_the_numbers_of_the_model_with_finite_slopes(tmp_path):
    (tmp_path / "net.py").write_text(NETS)
    train = registry.load_dataset("digits", None).train
    pixels = torch.cat((train.x.flatten(1), torch.ones(len(train), 1)), dim=1)
    wanted = nn.functional.one_hot(train.y, 10).to(pixels.dtype)
    solved = torch.linalg.solve(pixels.T @ pixels + torch.eye(785), pixels.T @ wanted).T
    torch.save(
        {"layers.1.weight": solved[:, :-1].contiguous(), "layers.1.bias": solved[:, -1].contiguous()}, tmp_path / "model.pt"
    )
    found = {}
    for target, attack in (("nan", "pgd,fmn,square(queries=20)"), ("plain", "pgd,fmn")):
        asked = [f"net.py:{target}", "--dataset=digits", "--weights=model.pt", f"--attack={attack}", "--n-examples=16"]
        asked += ["--epsilon=0.02", "--device=cpu", "--jobs=1", f"--out={target}", f"--json={target}.json"]
        ended = subprocess.run(
            [sys.executable, "-m", "advbench", "evaluate", *asked],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"NO_COLOR": "1", "COLUMNS": "200"},
            timeout=300,
        )
        assert ended.returncode == 0, ended.stderr
        assert ("NaN or infinite in places" in ended.stdout) == (target == "nan")
        found[target] = json.loads((tmp_path / f"{target}.json").read_text())
    shares = [found[target]["examples"]["by_attack"] for target in ("nan", "plain")]
    assert {name: shares[0][name] for name in ("pgd", "fmn")} == shares[1]
    assert 0 < sum(shares[1]["fmn"]) < 16
    distances = (torch.tensor(np.array(each["examples"]["distance"], float)) for each in found.values())
    torch.testing.assert_close(*distances, rtol=1e-3, atol=1e-5, equal_nan=True)
