"""What an attack leaves open is found on held-out images: the search for L-BFGS's constant, and the look that judges it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks import balls
from advbench.attacks.calibration import HeldOut, calibrate
from advbench.attacks.capabilities import Need, need_of
from advbench.attacks.lbfgs import LBFGS, search_constant
from advbench.attacks.pgd import PGD
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import ThreatModel, Untargeted

L2 = ThreatModel("l2", None, box=None)


class Halves(nn.Module):
    """Two classes, split by a plane at distance |w x| from each image; `noise` moves the plane."""

    def __init__(self, slope: float = 4.0, noise: float = 0.0) -> None:
        super().__init__()
        self.slope, self.noise = slope, noise

    def forward(self, x: Tensor, rng: ExampleRNG | None = None) -> Tensor:
        margin = self.slope * x.flatten(1)[:, 0]
        if rng is not None:
            margin = margin + self.noise * rng.normal((), x.dtype)
        return torch.stack((margin, -margin), dim=1)


def held_out(n: int = 40, **changes: object) -> HeldOut:
    x = torch.zeros(n, 1, 2, 2, dtype=torch.float64)
    x[:, 0, 0, 0] = torch.linspace(0.1, 1.0, n, dtype=torch.float64)
    fields = {"x": x, "y": torch.zeros(n, dtype=torch.int64), "index": torch.arange(n), "threat": L2, "model": Halves()}
    return HeldOut(**(fields | {"batch": 16} | changes))


@pytest.mark.parametrize("limit", [0.003, 0.3, 40.0])
def test_the_search_ends_at_the_largest_constant_that_breaks_enough(limit):
    tried = []

    def attacked(c: float) -> tuple[Tensor, Tensor]:
        tried.append(c)
        broken = torch.ones(200, dtype=torch.bool)
        broken[: 2 if c <= limit else 3] = False
        return broken, torch.full((200,), 1 / c)

    found = search_constant(attacked, steps=20)
    assert limit / 1.0001 < found <= limit
    assert len(tried) == 22


def test_the_smallest_total_counts_and_not_the_largest_constant():
    def attacked(c: float) -> tuple[Tensor, Tensor]:
        return torch.tensor([c <= 1.0]), torch.tensor([(c - 0.1) ** 2])

    found = search_constant(attacked, low=1e-3, high=10.0)
    assert found == pytest.approx(0.1, abs=1e-9)  # the first middle of the bisection


def test_a_search_that_cannot_succeed_says_how_far_it_came():
    with pytest.raises(RuntimeError, match=r"c = 0.0001 to break 99.0% of the held-out images, got 50.0%: give c"):
        search_constant(lambda c: (torch.tensor([True, False]), torch.ones(2)))
    for arguments, message in (({"low": 2.0, "high": 1.0}, "0 < `low` < `high`"), ({"rate": 0.0}, "`rate` in")):
        with pytest.raises(ValueError, match=message):
            search_constant(lambda c: (torch.ones(1, dtype=torch.bool), torch.ones(1)), **arguments)


def test_where_no_constant_breaks_enough_the_attack_is_at_its_strongest_and_the_share_is_told():
    class Deaf(Halves):
        """Every other image has a gradient of zero, and so never moves."""

        def forward(self, x: Tensor, rng: ExampleRNG | None = None) -> Tensor:
            logits = super().forward(x, rng)
            return torch.where(x.flatten(1)[:, 1:2] > 0.5, logits.detach().abs() * torch.tensor([1.0, -1.0]), logits)

    images = held_out(model=Deaf())
    images.x[::2, 0, 0, 1] = 1.0
    values = LBFGS(steps=30).calibrate(images)
    assert float(values["c"]) == 1e-4
    assert float(values["broken"]) == 0.5
    assert LBFGS(steps=30).calibrated(values).c == 1e-4


def test_the_constant_of_a_plane_is_its_closed_form():
    """Beyond the plane, c |r| + log(1 + exp(2 s (x - |r|))) falls with |r| as long as c < 2 s sigmoid(2 s (x - |r|)).

    The image is crossed where that holds at |r| = x: c < s, the slope, whatever the distance. Below, the minimum is the
    nearer to the plane the larger c is.
    """
    attack = LBFGS(steps=60)
    assert attack.need == Need("validation", model=True)
    assert need_of(LBFGS(c=1.0)) is None
    found = calibrate(attack, held_out())
    assert isinstance(found, LBFGS)
    assert 4.0 / 1.05 < found.c <= 4.0
    trial = held_out().attacked(found)
    assert trial.broken.all()
    length = balls.distance(trial.x_adv - held_out().x, "l2")
    torch.testing.assert_close(length, torch.linspace(0.1, 1.0, 40, dtype=torch.float64), atol=0.03, rtol=0)


def test_the_share_that_has_to_break_is_the_attacks_own():
    """An image is crossed where c is below its slope: a quarter of the images has a slope of one, the others of four."""

    class TwoSlopes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            first, second = x.flatten(1)[:, 0], x.flatten(1)[:, 1]
            margin = torch.where(second > 0.5, 1.0, 4.0) * first
            return torch.stack((margin, -margin), dim=1)

    images = held_out(model=TwoSlopes())
    images.x[::4, 0, 0, 1] = 1.0
    few, all_ = (calibrate(LBFGS(steps=60, rate=rate), images).c for rate in (0.75, 0.99))
    assert 4.0 / 1.05 < few <= 4.0
    assert 0.8 < all_ <= 1.0
    with pytest.raises(ValueError, match=r"Expected `rate` in \(0, 1\], got 1.5"):
        LBFGS(rate=1.5)


def test_a_constant_must_be_there_before_an_attack_runs():
    data = held_out()
    with pytest.raises(ValueError, match="Expected a constant `c`"):
        data.attacked(LBFGS())
    with pytest.raises(ValueError, match="Expected `c` > 0, got 0"):
        LBFGS(c=0)
    with pytest.raises(ValueError, match="Expected a model"):
        calibrate(LBFGS(), held_out(model=None))


def test_an_attack_without_open_values_stays_as_it_is():
    attack = PGD(steps=3)
    assert need_of(attack) is None
    assert calibrate(attack, held_out(model=None)) is attack


def test_the_verdict_is_a_fresh_look_and_passes_are_those_of_the_attack():
    linf = ThreatModel("linf", 0.45, box=None)
    trial = held_out(threat=linf).attacked(PGD(steps=2, step_size=1.0, random_start=False))
    first = held_out().x.flatten(1)[:, 0]
    assert torch.equal(trial.broken, first < 0.45)
    # One gradient at the image, one after the step where that did not suffice, and a last look there.
    assert torch.equal(trial.passes, torch.where(first < 0.45, 4, 5))


def test_nothing_depends_on_the_batch_and_a_stochastic_model_is_averaged():
    for changes in ({}, {"model": Halves(noise=0.5), "stochastic": True, "draws": 30}):
        wide, narrow = (held_out(batch=batch, **changes).attacked(LBFGS(c=0.5, steps=8)) for batch in (64, 7))
        torch.testing.assert_close(wide.x_adv, narrow.x_adv)
        assert torch.equal(wide.broken, narrow.broken)
        assert torch.equal(wide.passes, narrow.passes)
    far = held_out(model=Halves(noise=0.5), stochastic=True, draws=30, threat=ThreatModel("linf", 1e-9))
    assert not far.attacked(PGD(steps=1)).broken[10:].any()
    assert Untargeted(far.y).achieved(Halves()(far.x)).sum() == 0
