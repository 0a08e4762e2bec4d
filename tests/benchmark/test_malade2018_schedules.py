"""The search of schedules of Srinivasan et al. 2018: its grid, its score, what it leaves; and figure 1's clusters."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from advbench.defenses.defended import Defended, Surrogate
from advbench.defenses.inference.composition import purified
from advbench.defenses.inference.langevin import Langevin
from advbench.reproduction.papers.malade2018 import clusters
from advbench.reproduction.papers.malade2018.clusters import Clusters, relaxed
from advbench.reproduction.papers.malade2018.grid import Axis, Grid, Schedule, ScheduleScore, best, scored, searched
from advbench.zoo.data import Split


def test_an_axis_grows_at_the_edge_that_is_best_until_there_is_nothing_to_add():
    axis = Axis((3, 5), (2, 1), (9,))
    assert axis.extended(5) == Axis((3, 5, 9), (2, 1))
    assert axis.extended(3) == Axis((2, 3, 5), (1,), (9,))
    assert Axis((1, 2, 3)).extended(1) == Axis((1, 2, 3))
    assert Axis((1, 2, 3), (0,), (4,)).extended(2) == Axis((1, 2, 3), (0,), (4,))


def test_the_score_counts_clean_and_attacked_images_alike_and_then_the_loss():
    schedule = Schedule(1.0, 0.0, 0.9, 5)
    found = [
        ScheduleScore(schedule, 90.0, 50.0, 1.0),
        ScheduleScore(schedule, 60.0, 80.0, 0.5),
        ScheduleScore(schedule, 99.0, 40.0, 0.1),
    ]
    assert best(found) is found[1]


class Darker(nn.Module):
    """A denoiser whose nearest image of all is black."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)


class Brightness(nn.Module):
    """Class 1 where the mean pixel is above 1/4."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        above = x.mean(dim=(1, 2, 3)) - 0.25
        return torch.stack([-above, above], dim=1)


def darkening() -> Defended:
    sampler = Langevin(
        Darker(), steps=7, decay=0.5, step_offset=0.01, noise_offset=0.0, metropolis=False, clip=False, stochastic=True
    )
    net = Brightness()
    return purified(Defended(net, False, {"faithful": Surrogate(net)}), sampler, stochastic=True)


def images(heights: list[float]) -> torch.Tensor:
    return torch.tensor(heights).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)


def test_schedules_are_scored_as_their_closed_form_says():
    """Without noise every step multiplies an image by 1 - a_t."""
    clean = Split.of(images([0.9, 0.4, 0.1]), torch.tensor([1, 1, 0]))
    x_adv = images([0.6, 0.26, 0.3])
    wanted = [
        Schedule(a, 0.0, decay, n, end, 0.0) for a, decay, n, end in product((0.2, 0.5), (0.5, 1.0), (1, 3), (0.0, 0.05))
    ]
    for one in scored(darkening(), clean, x_adv, wanted, seed=0):
        kept = 1.0
        for t in range(one.schedule.steps):
            kept *= 1 - one.schedule.step_size * one.schedule.decay**t - one.schedule.step_offset
        right = [
            [(h * kept > 0.25) == bool(y) for h, y in zip(row, (1, 1, 0), strict=True)]
            for row in ((0.9, 0.4, 0.1), (0.6, 0.26, 0.3))
        ]
        assert (one.clean, one.attacked) == pytest.approx([100 * sum(row) / 3 for row in right])


def test_the_search_scores_every_combination_grows_and_leaves_the_schedule_as_it_was():
    """Attacked images are the brighter, and all are of the dark class: the largest step is best, beyond the first grid."""
    clean, x_adv = Split.of(images([0.26, 0.3]), torch.tensor([0, 0])), images([0.5, 0.6])
    grid = Grid(Axis((0.05, 0.1), (), (0.3, 0.5)), Axis((0.0,)), Axis((0.5, 0.9)), Axis((2, 3), (1,)), offset=False)
    defended = darkening()
    found = searched(defended, clean, x_adv, grid, seed=0)
    assert {one.schedule.step_size for one in found} == {0.05, 0.1, 0.3, 0.5}
    assert len(found) == len({one.schedule for one in found}) == 4 * 2 * 2
    assert best(found).schedule == Schedule(0.5, 0.0, 0.9, 3, 0.0, 0.0)
    sampler = defended.model.purifier
    assert (sampler.decay, sampler.steps, sampler.step_offset, sampler.strength.tolist()) == (0.5, 7, 0.01, [0.0, 0.0])


def log_density(setting: Clusters, x: torch.Tensor) -> torch.Tensor:
    """Of noisy points, up to a constant, from the formula of two normal densities."""
    each = [
        -((x - torch.tensor([m, 0.0])) ** 2 / (2 * setting.variances)).sum(dim=1)
        for m in (-setting.distance, setting.distance)
    ]
    return torch.logsumexp(torch.stack(each), dim=0)


def test_the_closed_form_scores_are_gradients():
    setting = Clusters(tilt=1.0, sharpness=1.5)
    x = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (wanted,) = torch.autograd.grad(log_density(setting, x).sum(), x)
    torch.testing.assert_close(setting.data_score(x), wanted)
    share = torch.sigmoid(x @ setting.slope).detach()
    odds = x @ setting.classifier
    logs = torch.nn.functional.logsigmoid(odds), torch.nn.functional.logsigmoid(-odds)
    (extra,) = torch.autograd.grad((share * logs[0] + (1 - share) * logs[1]).sum(), x)
    torch.testing.assert_close(setting.supervised_score(x), wanted + extra)


def test_with_the_true_posterior_both_scores_are_one_and_with_a_tilted_boundary_malade_restores_more():
    x, _ = Clusters().points(0)
    torch.testing.assert_close(Clusters().supervised_score(x), Clusters().data_score(x))
    tilted = Clusters(tilt=2.0)
    shares = [float(clusters.restored(tilted, 0, supervised).mean()) for supervised in (None, False, True)]
    assert shares[0] == 0
    assert shares[2] > shares[1] + 0.1


def test_an_attacked_point_is_just_beyond_the_boundary():
    setting = Clusters(tilt=2.0)
    x, y = setting.points(1)
    x_adv = setting.attacked(x, y, beyond=0.1)
    right = setting.predicted(x) == y
    distance = (x_adv[right] @ setting.classifier).abs() / setting.classifier.norm()
    torch.testing.assert_close(distance, torch.full_like(distance, 0.1))
    assert torch.equal(x_adv[~right], x[~right])
    assert relaxed(x, torch.zeros_like, 0.3).equal(x)
