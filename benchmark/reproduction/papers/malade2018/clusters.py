"""Srinivasan et al. 2018 (arXiv:1805.12017), figure 1: two clusters, where MALA errs and MALADE does not, in closed form.

Classes are two flat normal clusters in the plane, so that every score is known: no network is trained. The figure is a
sketch; what decides is the classifier. By theorem 1 the sDAE adds the mean over p(y|x) of grad log q(y|x) to the score of
the data, q being the classifier. Of the true q that mean is zero and both defenses are the same; of a q whose boundary is
tilted, as adversarial examples have it, it leads back to where q agrees with p.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from advbench.reproduction.findings import Findings
from advbench.reproduction.measured import SeedFigure, percent
from advbench.reproduction.study import EVERY_SCALE, Comparison, Ours, Pair, Scale, Settings, Study

_POINTS = 1000
"""Points of each seed."""
_STEPS = 10
_STEP_SIZE = 0.5
"""Of every step, in units of the residual sigma^2 score, without noise."""


@dataclass(frozen=True, slots=True)
class Clusters:
    """Two classes of equal size, normal around (-distance, 0) and (distance, 0).

    along, across: deviations of a cluster in y and in x. sigma: of the noise that the denoiser is trained on. tilt: the
    classifier's slope in y over its slope in x; 0 is the true posterior of noisy points. sharpness: the classifier's
    slope as a multiple of the true one.
    """

    distance: float = 1.0
    along: float = 1.0
    across: float = 0.1
    sigma: float = 0.3
    tilt: float = 0.0
    sharpness: float = 1.0

    @property
    def variances(self) -> Tensor:
        """Of a cluster with the noise, in x and in y, (2,)."""
        return torch.tensor([self.across, self.along], dtype=torch.float64).square() + self.sigma**2

    @property
    def slope(self) -> Tensor:
        """The gradient of the log odds log p(1|x) - log p(0|x), (2,): linear, as the clusters have one covariance."""
        return torch.tensor([2 * self.distance, 0.0], dtype=torch.float64) / self.variances

    @property
    def classifier(self) -> Tensor:
        """The gradient of the classifier's log odds, (2,)."""
        steep = self.sharpness * self.slope[0]
        return torch.stack([steep, steep * self.tilt])

    def points(self, seed: int, n: int = _POINTS) -> tuple[Tensor, Tensor]:
        """Points (n, 2) and their classes (n,)."""
        generator = torch.Generator().manual_seed(seed)
        y = torch.randint(0, 2, (n,), generator=generator)
        deviations = torch.tensor([self.across, self.along], dtype=torch.float64)
        x = torch.randn(n, 2, generator=generator, dtype=torch.float64) * deviations
        x[:, 0] += self.distance * (2 * y - 1)
        return x, y

    def predicted(self, x: Tensor) -> Tensor:
        """The classifier's classes, (n,)."""
        return (x @ self.classifier > 0).long()

    def data_score(self, x: Tensor) -> Tensor:
        """grad log p_sigma(x), (n, 2): what a DAE estimates."""
        share = torch.sigmoid(x @ self.slope)
        middle = torch.stack([self.distance * (2 * share - 1), torch.zeros_like(share)], dim=1)
        return (middle - x) / self.variances

    def supervised_score(self, x: Tensor) -> Tensor:
        """grad log p_sigma(x) + sum over y of p_sigma(y|x) grad log q(y|x), (n, 2): what an sDAE estimates (theorem 1)."""
        gap = torch.sigmoid(x @ self.slope) - torch.sigmoid(x @ self.classifier)
        return self.data_score(x) + gap[:, None] * self.classifier

    def attacked(self, x: Tensor, y: Tensor, beyond: float = 0.1) -> Tensor:
        """The nearest points (n, 2) on the classifier's wrong side, `beyond` its boundary; wrong ones stay."""
        w = self.classifier
        margin = (x @ w) * (2 * y - 1) / w.norm()
        step = torch.where(margin > 0, margin + beyond, torch.zeros_like(margin))
        moved: Tensor = x - (step * (2 * y - 1))[:, None] * w / w.norm()
        return moved


def relaxed(x: Tensor, score: Callable[[Tensor], Tensor], sigma: float) -> Tensor:
    """Points after the Langevin steps without noise, (n, 2)."""
    for _ in range(_STEPS):
        x = x + _STEP_SIZE * sigma**2 * score(x)
    return x


SETTINGS = {
    "the true posterior": Clusters(),
    "tilted by 45 degrees": Clusters(tilt=1.0),
    "tilted by 63 degrees": Clusters(tilt=2.0),
    "tilted by 63 degrees, 3 times as sharp": Clusters(tilt=2.0, sharpness=3.0),
    "tilted by 76 degrees": Clusters(tilt=4.0),
}
"""Classifiers, by what is other than in the true one."""


def restored(setting: Clusters, seed: int, supervised: bool | None) -> Tensor:
    """Of attacked points whether the classifier is right after the steps, (n,), 0 or 1.

    supervised: by MALADE's score, by MALA's where False; None for no steps.
    """
    x, y = setting.points(seed)
    x_adv = setting.attacked(x, y)
    if supervised is not None:
        x_adv = relaxed(x_adv, setting.supervised_score if supervised else setting.data_score, setting.sigma)
    return (setting.predicted(x_adv) == y).double()


def _runs(_: Scale) -> Mapping[str, Settings]:
    return {}


def _compare(findings: Findings) -> Sequence[Comparison]:
    rows = []
    for name, setting in SETTINGS.items():
        after = [_accuracy(setting, findings.seeds, supervised) for supervised in (None, False, True)]
        rows.append((name, tuple(Pair(None, Ours(one)) for one in (_clean(setting, findings.seeds), *after))))
    columns = (("clean", "%"), ("attacked", "%"), ("attacked, MALA", "%"), ("attacked, MALADE", "%"))
    notes = (
        f"{_POINTS:,} points a seed, {_STEPS} steps of {_STEP_SIZE:g} of the residual without noise, sigma 0.3; an attacked "
        "point is the nearest one beyond the classifier's boundary",
        "with the true posterior both scores are the same to rounding error: what MALADE adds is the classifier's error",
    )
    caption = "Two clusters and classifiers with tilted boundaries (figure 1 is a sketch)"
    return (Comparison(caption, columns, tuple(rows), (), notes),)


def _clean(setting: Clusters, seeds: Sequence[int]) -> SeedFigure:
    figures = []
    for seed in seeds:
        x, y = setting.points(seed)
        figures.append(percent((setting.predicted(x) == y).double().numpy(), torch.arange(len(x)).numpy()))
    return SeedFigure.of(figures)


def _accuracy(setting: Clusters, seeds: Sequence[int], supervised: bool | None) -> SeedFigure:
    found = [restored(setting, seed, supervised) for seed in seeds]
    return SeedFigure.of(percent(one.numpy(), torch.arange(len(one)).numpy()) for one in found)


def _differs(_: Scale) -> Sequence[str]:
    return ("the paper's figure is a sketch without numbers; the clusters and the classifiers here are ours",)


STUDIES = (
    Study("malade2018.fig1", "figure 1: two clusters, the score in closed form", _runs, _compare, _differs, EVERY_SCALE),
)
