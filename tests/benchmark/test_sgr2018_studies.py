"""The figures that the studies of Roth et al. 2018 compute from images and models."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from advbench.config import make_config
from advbench.registry.specs import Spec
from advbench.reproduction.measured import SeedFigure
from advbench.reproduction.papers.sgr2018 import covariance, whitebox
from advbench.reproduction.papers.sgr2018.nets import GRADIENT_METHODS, RADIUS, by_rule
from advbench.reproduction.papers.sgr2018.studies import STUDIES


def test_a_mean_over_radii_weighs_them_by_their_distance():
    accuracy = [SeedFigure(row) for row in ((100.0, 90.0), (50.0, 90.0), (0.0, 90.0))]
    average = whitebox._average([0.0, 0.1, 0.4], accuracy)
    assert tuple(average) == pytest.approx((0.1 / 0.4 * 75 + 0.3 / 0.4 * 25, 90.0))


def test_a_linear_path_has_no_second_difference_and_a_kink_has_one():
    t = torch.linspace(0, 1, 21).view(-1, 1, 1)
    assert float(whitebox.second_differences(t.expand(21, 3, 2)).max()) < 1e-6
    kink = whitebox.second_differences((t - 0.5).abs())
    assert kink.flatten().argmax() == 9  # the tenth of 19 inner points, the middle one
    assert float(kink.max()) == pytest.approx(0.1)


def test_a_line_starts_at_the_image_and_ends_at_the_adversarial():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    x, x_adv = torch.rand(5, 1, 2, 2), torch.rand(5, 1, 2, 2)
    answers = whitebox.along(model, x, x_adv)
    assert answers.shape == (21, 5, 3)
    assert torch.allclose(answers[0], model(x).softmax(dim=1), atol=1e-6)
    assert torch.allclose(answers[-1], model(x_adv).softmax(dim=1), atol=1e-6)


def test_the_share_of_the_mean_is_all_for_one_repeated_change_and_little_for_noise():
    assert covariance._share_of_mean(torch.ones(10, 1, 3, 3)) == pytest.approx(100.0)
    noise = torch.randn(4000, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert covariance._share_of_mean(noise) == pytest.approx(100.0 / 4000, rel=0.8)


def test_matrices_of_independent_pixels_are_grey_off_the_diagonal():
    noise = torch.randn(20_000, 1, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = covariance._matrix(noise)
    assert matrix.shape == (24, 24)
    assert float(matrix.diagonal().min()) > 0.9
    assert float((matrix - matrix.diagonal().diag()).abs().max()) < 0.05


def test_the_nine_trainings_are_told_apart_and_see_the_radius_of_their_experiment():
    nine = by_rule(("clean", "wdecay", "pgd", "fgsm", *GRADIENT_METHODS), dict.fromkeys(GRADIENT_METHODS, 3.0))
    assert len(set(map(str, nine.values()))) == 9
    for study in STUDIES:
        for scale in study.scales:
            for settings in study.runs(scale).values():
                config = make_config(**settings)
                radii = {dict(spec.arguments).get("epsilon") for spec in config.defense if isinstance(spec, Spec)} - {None}
                assert radii <= {RADIUS, max(config.epsilon or (RADIUS,))}
