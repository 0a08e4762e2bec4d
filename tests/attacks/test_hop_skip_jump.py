"""HopSkipJump's starts: images of other classes where a detector rejects all noise, noise where there are none."""

from __future__ import annotations

import functools

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from advbench.attacks import balls
from advbench.attacks.access import DecisionBased, DetectorView
from advbench.attacks.calibration import HeldOut, calibrate
from advbench.attacks.capabilities import Need, need_of
from advbench.attacks.hop_skip_jump import HopSkipJump
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import ThreatModel, Untargeted

SCORED = 20


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    found = load_digits()
    return torch.from_numpy(found.images / 16).float().unsqueeze(1), torch.from_numpy(found.target).long()


def scored() -> tuple[Tensor, Tensor]:
    x, y = digits()
    right = (Centroids()(x[1000:]).argmax(dim=1) == y[1000:]).nonzero().squeeze(1)[:SCORED]
    return x[1000:][right], y[1000:][right]


def held_out(n: int = 300) -> HeldOut:
    x, y = digits()
    return HeldOut(x=x[500 : 500 + n], y=y[500 : 500 + n], index=torch.arange(n), threat=ThreatModel("none", None))


class Centroids(nn.Module):
    """The class of the nearest mean image: linear, so that the distance to every boundary is known."""

    def __init__(self) -> None:
        super().__init__()
        x, y = digits()
        self.means = torch.stack([x[:500][y[:500] == k].flatten(1).mean(dim=0) for k in range(10)])
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x)
        return -(x.flatten(1).unsqueeze(1) - self.means).square().sum(dim=2)


class Unlike(nn.Module):
    """Rejects whatever lies farther than two from every one of 500 images."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1).unsqueeze(1) - digits()[0][:500].flatten(1)).square().sum(dim=2).amin(dim=1).sqrt() - 2.0


def run(attack, x, y, norm="l2", *, model=None, detector=None, rows=None, epsilon=None, **how):
    rng = ExampleRNG.make(0, "attack", torch.arange(len(x)) if rows is None else rows)
    detector = None if detector is None else DetectorView(detector, y)
    with DecisionBased(model or Centroids(), rng.fork("model"), detector=detector, **how) as access:
        return attack(access, x, Untargeted(y), ThreatModel(norm, epsilon), rng.fork("attack")), access.ledger.queries


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_beside_a_detector_that_rejects_noise_images_of_other_classes_are_the_starts(norm):
    x, y = scored()
    noise, asked = run(HopSkipJump(queries=400), x, y, norm, detector=Unlike())
    assert torch.equal(noise, x)
    assert asked.tolist() == [41] * SCORED  # the image itself, and forty rejected noise images
    found, asked = run(calibrate(HopSkipJump(queries=400), held_out()), x, y, norm, detector=Unlike())
    assert (Centroids()(found).argmax(dim=1) != y).all()
    assert (Unlike()(found) <= 0).all()
    assert (asked <= 400).all()
    to_pool = torch.cdist(x.flatten(1), held_out().x.flatten(1), p=2.0 if norm == "l2" else torch.inf)
    nearest = to_pool.masked_fill(y.unsqueeze(1) == held_out().y, torch.inf).amin(dim=1)
    assert (balls.distance(found - x, norm) < nearest).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_without_a_detector_the_images_are_found_as_near_as_from_noise(norm):
    x, y = scored()
    noise, _ = run(HopSkipJump(queries=1500), x, y, norm)
    pool, _ = run(calibrate(HopSkipJump(queries=1500), held_out()), x, y, norm)
    assert (Centroids()(pool).argmax(dim=1) != y).all()
    lengths = [balls.distance(found - x, norm) for found in (pool, noise)]
    assert lengths[0].median() <= 1.04 * lengths[1].median()
    assert lengths[0].mean() <= 1.04 * lengths[1].mean()


def test_the_walk_reaches_the_exact_boundary_of_a_linear_model():
    x, y = scored()
    model = Centroids()
    found, _ = run(calibrate(HopSkipJump(queries=5000), held_out()), x[:6], y[:6])
    mine = model.means[y[:6]].unsqueeze(1)
    gaps = (x[:6].flatten(1).unsqueeze(1) - model.means).square().sum(dim=2) - (
        x[:6].flatten(1).unsqueeze(1) - mine
    ).square().sum(dim=2)
    exact = (gaps / (2 * (model.means - mine).norm(dim=2))).nan_to_num(nan=torch.inf).amin(dim=1)  # without the box
    length = balls.distance(found - x[:6], "l2")
    assert (length >= exact * (1 - 1e-4)).all()
    assert length.median() <= 1.35 * exact.median()


def test_the_nearest_image_of_another_class_is_asked_first():
    x, y = scored()
    model, pool = Centroids(), held_out()
    run(calibrate(HopSkipJump(queries=2), pool), x, y, model=model)
    clean, starts = model.asked
    assert torch.equal(clean, x)
    lengths = (x.flatten(1).unsqueeze(1) - pool.x.flatten(1)).square().sum(dim=2)
    expected = lengths.masked_fill(y.unsqueeze(1) == pool.y, torch.inf).argmin(dim=1)
    assert torch.equal(starts, pool.x[expected])


def test_where_the_nearest_is_rejected_the_next_nearest_is_asked():
    x = torch.tensor([[0.2], [0.3]]).view(2, 1, 1, 1)
    y = torch.zeros(2, dtype=torch.int64)
    pool = HeldOut(
        x=torch.tensor([0.25, 0.6, 0.7, 0.9]).view(4, 1, 1, 1),
        y=torch.tensor([0, 1, 1, 1]),
        index=torch.arange(4),
        threat=ThreatModel("none", None),
    )

    class Step(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat((torch.full_like(x.flatten(1), 0.5), x.flatten(1)), dim=1)

    class Band(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0.85 - x.flatten()  # only what is above is accepted

    found, queries = run(calibrate(HopSkipJump(queries=5), pool), x, y, model=Step(), detector=Band())
    torch.testing.assert_close(found.flatten(), torch.tensor([0.9, 0.9]))
    assert queries.tolist() == [5, 5]  # the image, three of the pool, and one of noise


def test_the_pool_has_the_first_images_of_every_class_in_turn():
    y = torch.tensor([2, 2, 2, 0, 1, 0, 1, 2, 1])
    pool = HeldOut(x=torch.arange(9.0).view(9, 1, 1, 1), y=y, index=torch.arange(9), threat=ThreatModel("none", None))
    found = HopSkipJump(pool=5).calibrate(pool)
    assert found["x"].flatten().tolist() == [3, 4, 0, 5, 6]
    assert found["y"].tolist() == [0, 1, 2, 0, 1]
    everything = HopSkipJump(pool=50).calibrate(pool)
    assert sorted(everything["x"].flatten().tolist()) == list(range(9))


def test_the_pool_is_asked_for_without_the_model_and_may_be_left_out():
    assert need_of(HopSkipJump()) == Need("validation", model=False, optional=True)
    alone = HopSkipJump(pool=0)
    assert need_of(alone) is None
    assert calibrate(alone, held_out()) is alone
    with pytest.raises(ValueError, match="Expected `pool` >= 0, got -1"):
        HopSkipJump(pool=-1)


def test_an_empty_pool_leaves_noise_alone():
    x, y = scored()
    plain, spent = run(HopSkipJump(queries=300), x, y)
    empty, again = run(calibrate(HopSkipJump(queries=300), held_out(0)), x, y)
    assert torch.equal(plain, empty)
    assert torch.equal(spent, again)
    assert not torch.equal(plain, x)


def test_images_of_one_class_are_no_starts_for_it():
    x, y = scored()
    same = y == y[0]
    own = HeldOut(x=x[same], y=y[same], index=torch.arange(int(same.sum())), threat=ThreatModel("none", None))
    found, _ = run(calibrate(HopSkipJump(queries=300), own), x[:1], y[:1])
    assert int(Centroids()(found).argmax()) != int(y[0])  # noise stands in


def test_an_example_does_not_depend_on_its_batch():
    x, y = scored()
    attack = calibrate(HopSkipJump(queries=1600), held_out(80))  # enough for the trial iterations
    x, y = x[:5].double(), y[:5]
    model, order = Centroids().double(), torch.tensor([3, 0, 4, 2, 1])
    model.means = model.means.double()
    together, spent = run(attack, x, y, model=model)
    for rows in (order, *order.split(1), *order.split(2)):
        alone, queries = run(attack, x[rows], y[rows], model=model, rows=rows)
        torch.testing.assert_close(alone, together[rows], rtol=0, atol=1e-9)
        assert torch.equal(queries, spent[rows])
    assert together.dtype == torch.float64


class Band(nn.Module):
    """Errors at 0.06 to 0.12 from a half, and beyond 0.4."""

    def forward(self, x: Tensor) -> Tensor:
        far = (x.flatten(1) - 0.5).abs().amax(dim=1)
        wrong = ((far > 0.06) & (far < 0.12)) | (far > 0.4)
        return torch.stack((~wrong, wrong), dim=1).float()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_radius_brings_a_start_into_the_ball(norm):
    x, y = torch.full((2, 1, 1, 1), 0.5), torch.zeros(2, dtype=torch.int64)
    pool = HeldOut(x=torch.ones(1, 1, 1, 1), y=y[:1] + 1, index=y[:1], threat=ThreatModel("none", None))
    attack = calibrate(HopSkipJump(queries=40), pool)
    anywhere, _ = run(attack, x, y, norm, model=Band())
    inside, _ = run(attack, x, y, norm, model=Band(), epsilon=0.1)
    assert (balls.distance(anywhere - x, norm) > 0.3).all()
    assert (balls.distance(inside - x, norm) <= 0.1 + 1e-6).all()


def test_a_stochastic_model_is_asked_in_whole_batches_and_a_seed_repeats():
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sizes: list[int] = []

        def forward(self, x: Tensor, rng: ExampleRNG) -> Tensor:
            self.sizes.append(len(x))
            return Centroids()(x) + 0.3 * rng.normal((10,))

    x, y = scored()
    attack, model = calibrate(HopSkipJump(queries=300), held_out(100)), Noisy()
    found, queries = run(attack, x[:4], y[:4], model=model, stochastic=True, draws=2)
    again, _ = run(attack, x[:4], y[:4], model=Noisy(), stochastic=True, draws=2)
    assert set(model.sizes) == {8}
    assert torch.equal(found, again)
    assert not torch.equal(found, x[:4])
    assert (queries <= 300).all()


class Halved(nn.Module):
    """Two classes on either side of half grey."""

    def forward(self, x: Tensor) -> Tensor:
        lead = x.flatten(1).mean(dim=1) - 0.5
        return torch.stack((-lead, lead), dim=1)


@pytest.mark.parametrize("queries", range(150, 260, 5))
def test_no_budget_is_overspent(queries):
    """An iteration begins only where its probes, its halvings and its bisection can be paid."""
    x, y = torch.full((1, 1, 3, 3), 0.3), torch.zeros(1, dtype=torch.int64)
    _, asked = run(HopSkipJump(queries=queries, evaluations=20), x, y, model=Halved())
    assert 0 < int(asked.max()) <= queries
