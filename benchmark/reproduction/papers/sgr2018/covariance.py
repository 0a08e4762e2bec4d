"""Roth et al. 2018 (arXiv:1805.08736): what the second moments of perturbations look like, and how they are held."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from advbench.defenses.kernels.covariance import autocorrelation, decay_length, radial_profile
from advbench.reports.images import around_grey, image_grid
from advbench.reports.section import ImageGrid
from advbench.reproduction.clean import clean_accuracy
from advbench.reproduction.findings import Findings, RunFindings
from advbench.reproduction.measured import SeedFigure, difference
from advbench.reproduction.papers.sgr2018.nets import BUDGETS, COEFFICIENT, RADIUS, by_seed, differs, labels
from advbench.reproduction.study import (
    Comparison,
    Inequality,
    Ours,
    Pair,
    Plot,
    Scale,
    Series,
    Settings,
    Study,
    at_most,
    claim_of,
)

_ATTACKS = ("fgsm", "pgd", "deepfool")
_FORMS: Mapping[str, Settings] = {
    form: {"name": "sgr", "coefficient": COEFFICIENT, "form": form} for form in ("radial", "displacement", "matrix")
}
_TRAINING_IMAGES = 5_000
_ROWS = 6
"""Rows of pixels whose covariance matrix is drawn, in the middle of the image."""


def _structure_runs(scale: Scale) -> Mapping[str, Settings]:
    return {
        "attacks": {
            **BUDGETS[scale],
            "matrix": ["white-box"],
            "defense": ["none"],
            "norm": "linf",
            "epsilon": [RADIUS],
            "attack": ["fgsm", "pgd(steps=20)", "deepfool"],
        }
    }


def _structure(findings: Findings) -> Sequence[Comparison]:
    run = findings["attacks"]
    images = run.plan.data.train.x[:_TRAINING_IMAGES].double()
    images = images - images.mean(dim=0)
    data = decay_length(autocorrelation(images))
    changes = {name: tuple(_changes(run, seed, name) for seed in findings.seeds) for name in _ATTACKS}
    functions = {name: tuple(autocorrelation(each) for each in found) for name, found in changes.items()}
    lengths = {name: _bootstrapped(findings, name, changes[name], _length) for name in _ATTACKS}
    means = {name: _bootstrapped(findings, name, changes[name], _share_of_mean) for name in _ATTACKS}
    rows = [("training images", (Pair(None, Ours((data,))), Pair(None, None)))]
    rows += [(name, (Pair(None, Ours(lengths[name])), Pair(None, Ours(means[name])))) for name in _ATTACKS]
    claims = (
        claim_of(
            "sgr2018.claim.short_range",
            (Inequality(f"half of the images' decay length - {name}'s", data / 2 - lengths[name]) for name in _ATTACKS),
        ),
        claim_of(
            "sgr2018.mean_vs_second_moment",
            (at_most(f"share of {name}, %", means[name], 1.0) for name in ("fgsm", "pgd")),
        ),
    )
    columns = (("decay length", "pixels"), ("share of the mean in the second moment", "%"))
    caption = "Where the covariance function of perturbations falls below 1/e of its value at distance zero"
    plot = Plot(
        "Covariance by distance, mean over channels, 1 at distance zero",
        "distance (pixels)",
        "correlation",
        (
            _profile("training images", (autocorrelation(images),)),
            *(_profile(name, functions[name]) for name in _ATTACKS),
        ),
    )
    return (Comparison(caption, columns, tuple(rows), claims, (), (plot,), _matrices(images, changes)),)


def _changes(run: RunFindings, seed: int, attack: str) -> Tensor:
    return run.perturbations(run.one(seed=seed, attack=attack)).double()


def _bootstrapped(
    findings: Findings, attack: str, changes: Sequence[Tensor], statistic: Callable[[Tensor], float]
) -> SeedFigure:
    """A statistic of perturbations by seed; images are drawn from all that were attacked, of which each seed broke some."""

    def of_seed(broken: NDArray[np.bool_], found: Tensor) -> Callable[[NDArray[np.int64]], float]:
        place = np.where(broken, np.cumsum(broken) - 1, -1)

        def of_rows(rows: NDArray[np.int64]) -> float:
            chosen = place[rows]
            return statistic(found[torch.from_numpy(chosen[chosen >= 0])])

        return of_rows

    masks = [findings["attacks"].one(seed=seed, attack=attack).broken for seed in findings.seeds]
    return SeedFigure.bootstrapped([of_seed(*pair) for pair in zip(masks, changes, strict=True)], len(masks[0]))


def _length(changes: Tensor) -> float:
    return float(decay_length(autocorrelation(changes)))


def _share_of_mean(changes: Tensor) -> float:
    """The mean perturbation's part of the raw second moment, the trace of the one over that of the other, in percent."""
    return 100.0 * float(changes.mean(dim=0).square().sum() / changes.square().flatten(1).sum(dim=1).mean())


def _profile(name: str, functions: Sequence[Tensor]) -> Series:
    profiles = [radial_profile(each).diagonal().mean(dim=1) for each in functions]
    shares = [each / each[0] for each in profiles]
    reach = min(9, len(shares[0]))
    return Series(
        name,
        tuple(float(r) for r in range(reach)),
        tuple(Ours(tuple(float(each[r]) for each in shares)) for r in range(reach)),
    )


def _matrices(images: Tensor, changes: Mapping[str, tuple[Tensor, ...]]) -> tuple[ImageGrid, ...]:
    """The covariance matrices of some rows of pixels, of the first seed, each scaled to a largest entry of one."""
    named = {"training images": images, **{name: found[0] for name, found in changes.items()}}
    drawn = torch.stack([_matrix(each) for each in named.values()]).unsqueeze(1)
    grid = image_grid(
        around_grey(drawn.unsqueeze(0).float().numpy(), 1.0),
        rows=("second moments",),
        columns=tuple(named),
        alt="Covariance matrices of training images and of perturbations: those of perturbations are close to diagonal",
        caption=f"Second moments of the middle {_ROWS} rows of pixels, one after the other; grey is zero",
        group="covariance matrices",
    )
    return (grid,)


def _matrix(x: Tensor) -> Tensor:
    first = max(0, x.shape[2] // 2 - _ROWS // 2)
    flat = x[:, 0, first : first + _ROWS].flatten(1)
    moments = flat.T @ flat
    return moments / moments.abs().max()


def _form_runs(scale: Scale) -> Mapping[str, Settings]:
    return {
        "forms": {
            **BUDGETS[scale],
            "matrix": ["white-box"],
            "defense": list(_FORMS.values()),
            "norm": "linf",
            "epsilon": [RADIUS],
            "attack": ["pgd(steps=20)"],
        }
    }


def _form(findings: Findings) -> Sequence[Comparison]:
    label = labels(findings, "forms", _FORMS)
    clean = {
        form: by_seed(findings, "forms", lambda cell: clean_accuracy(findings["forms"], cell), target=target)
        for form, target in label.items()
    }
    robust = {form: by_seed(findings, "forms", lambda cell: cell.accuracy, target=target) for form, target in label.items()}
    rows = tuple((form, (Pair(None, Ours(clean[form])), Pair(None, Ours(robust[form])))) for form in label)
    claim = claim_of(
        "sgr2018.covfun_vs_full",
        (
            at_most(f"{what}, matrix - radial", difference(of["matrix"], of["radial"]), 3.0)
            for what, of in (("clean", clean), ("PGD", robust))
        ),
    )
    caption = (
        "SGR under the radial covariance function, the function of displacement, and the full matrix (no numbers printed)"
    )
    return (Comparison(caption, (("test", "%"), ("PGD", "%")), rows, (claim,)),)


STUDIES = (
    Study("sgr2018.fig_cov", "covariance of perturbations", _structure_runs, _structure, differs),
    Study("sgr2018.covfun_vs_full", "covariance function against full matrix", _form_runs, _form, differs),
)
