"""Roth et al. 2018 (arXiv:1805.08736): what the second moments of perturbations look like, and how they are held."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

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
from advbench.reproduction.papers.sgr2018.nets import (
    BUDGETS,
    CIFAR,
    CIFAR_RADIUS,
    RADIUS,
    Strengths,
    by_seed,
    chosen_note,
    differs,
    labels,
    printed,
    strengths_of,
    study,
)
from advbench.reproduction.study import (
    EVERY_SCALE,
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
_FORMS = {"radial": "sgr_sign", "displacement": "displacement", "matrix": "matrix"}
"""The forms of the covariance, and their trainings' names."""
_TRAINING_IMAGES = 5_000
_ROWS = 6
"""Rows of pixels whose covariance matrix is drawn, in the middle of the image."""


def _structure_runs(scale: Scale) -> Mapping[str, Settings]:
    common = {
        "matrix": ["white-box"],
        "defense": ["none"],
        "norm": "linf",
        "attack": ["fgsm", "pgd(steps=20)", "deepfool"],
    }
    cifar = {**CIFAR[scale], **common, "epsilon": [CIFAR_RADIUS if scale != "smoke" else RADIUS]}
    return {"cifar10": cifar} | ({} if scale == "smoke" else {"mnist": {**BUDGETS[scale], **common, "epsilon": [RADIUS]}})


def _structure(findings: Findings) -> Sequence[Comparison]:
    found = [_structure_on(findings, "cifar10")]
    if "mnist" in findings.runs:
        note = "no claim is judged on MNIST: most of its pixels are black, so that clipping keeps positive changes alone"
        found.append(replace(_structure_on(findings, "mnist"), claims=(), notes=(note,)))
    return found


def _structure_on(findings: Findings, name_: str) -> Comparison:
    run = findings[name_]
    images = run.plan.data.train.x[:_TRAINING_IMAGES].double()
    images = images - images.mean(dim=0)
    data = decay_length(autocorrelation(images))
    changes = {name: tuple(_changes(run, seed, name) for seed in findings.seeds) for name in _ATTACKS}
    if lacking := sorted(name for name, found in changes.items() if not all(map(len, found))):
        raise ValueError(f"Expected {lacking[0]} to make some images of each seed wrong, got none")
    functions = {name: tuple(autocorrelation(each) for each in found) for name, found in changes.items()}
    broken = {name: [run.one(seed=seed, attack=name).broken for seed in findings.seeds] for name in _ATTACKS}
    lengths = {name: _bootstrapped(broken[name], changes[name], _length) for name in _ATTACKS}
    means = {name: _bootstrapped(broken[name], changes[name], _share_of_mean) for name in _ATTACKS}
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
    caption = f"{run.plan.data.name}: where the covariance function falls below 1/e of its value at distance zero"
    named = {"training images": (autocorrelation(images),), **functions}
    plots = [_by_distance("within channels, mean over them", named, within=True)]
    if run.plan.data.shape[0] > 1:
        plots.append(_by_distance("between channels, mean over pairs", named, within=False))
    return Comparison(caption, columns, tuple(rows), claims, (), tuple(plots), _matrices(images, changes))


def _by_distance(which: str, functions: Mapping[str, Sequence[Tensor]], *, within: bool) -> Plot:
    return Plot(
        f"Covariance by distance {which}, in units of the variance",
        "distance (pixels)",
        "correlation",
        tuple(_profile(name, each, within=within) for name, each in functions.items()),
    )


def _changes(run: RunFindings, seed: int, attack: str) -> Tensor:
    return run.perturbations(run.one(seed=seed, attack=attack)).double()


def _bootstrapped(
    masks: Sequence[NDArray[np.bool_]], changes: Sequence[Tensor], statistic: Callable[[Tensor], float]
) -> SeedFigure:
    """A statistic of perturbations by seed; images are drawn from all that were attacked, of which each seed broke some."""

    def of_seed(broken: NDArray[np.bool_], found: Tensor) -> Callable[[NDArray[np.int64]], float]:
        place = np.where(broken, np.cumsum(broken) - 1, -1)

        def of_rows(rows: NDArray[np.int64]) -> float:
            chosen = place[rows]
            chosen = chosen[chosen >= 0]
            return statistic(found[torch.from_numpy(chosen)]) if len(chosen) else math.nan

        return of_rows

    return SeedFigure.bootstrapped([of_seed(*pair) for pair in zip(masks, changes, strict=True)], len(masks[0]))


def _length(changes: Tensor) -> float:
    return float(decay_length(autocorrelation(changes)))


def _share_of_mean(changes: Tensor) -> float:
    """The mean perturbation's part of the raw second moment, the trace of the one over that of the other, in percent."""
    return 100.0 * float(changes.mean(dim=0).square().sum() / changes.square().flatten(1).sum(dim=1).mean())


def _profile(name: str, functions: Sequence[Tensor], *, within: bool) -> Series:
    """The covariance by distance within channels, or between them, over the mean variance."""
    shares = []
    for function in functions:
        profile = radial_profile(function)
        own = profile.diagonal().mean(dim=1)
        pairs = len(profile) * (len(profile) - 1)
        shares.append((own if within else (profile.sum(dim=(0, 1)) - len(profile) * own) / pairs) / own[0])
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
        caption=f"Second moments of the middle {_ROWS} rows of pixels over all channels, one after the other; grey is zero",
        group="covariance matrices",
    )
    return (grid,)


def _matrix(x: Tensor) -> Tensor:
    rows = max(1, _ROWS // x.shape[1])
    first = max(0, x.shape[2] // 2 - rows // 2)
    flat = x[:, :, first : first + rows].flatten(1)
    moments = flat.T @ flat
    return moments / moments.abs().max()


def _form_trainings(chosen: Strengths) -> dict[str, Settings]:
    """Each under the strength of its own form; that of displacement, of which no claim is, under the radial one's."""
    each = printed(_FORMS.values(), {**chosen, "displacement": chosen["sgr_sign"]})
    return {form: each[name] for form, name in _FORMS.items()}


def _form_runs(scale: Scale, chosen: Strengths) -> Mapping[str, Settings]:
    return {
        "forms": {
            **BUDGETS[scale],
            "matrix": ["white-box"],
            "defense": list(_form_trainings(chosen).values()),
            "norm": "linf",
            "epsilon": [RADIUS],
            "attack": ["pgd(steps=20)"],
        }
    }


def _form(findings: Findings) -> Sequence[Comparison]:
    label = labels(findings, "forms", _form_trainings(strengths_of(findings)))
    clean = {
        form: by_seed(findings, "forms", lambda cell: clean_accuracy(findings["forms"], cell), target=target)
        for form, target in label.items()
    }
    robust = {form: by_seed(findings, "forms", lambda cell: cell.accuracy, target=target) for form, target in label.items()}
    lifted = {
        form: [findings["forms"].one(seed=seed, target=target).record.details["train_facts"] for seed in findings.seeds]
        for form, target in label.items()
    }
    rows = tuple(
        (
            form,
            (
                Pair(None, Ours(clean[form])),
                Pair(None, Ours(robust[form])),
                Pair(None, Ours([100 * (facts["clipped_mass"] or 0.0) for facts in lifted[form]])),
            ),
        )
        for form in label
    )
    parts = [
        at_most(f"{what}, matrix - radial", difference(of["matrix"], of["radial"]), 3.0)
        for what, of in (("clean", clean), ("PGD", robust))
    ]
    claim = claim_of("sgr2018.covfun_vs_full", parts, attributable=parts)
    caption = (
        "SGR under the radial covariance function, the function of displacement, and the full matrix (no numbers printed)"
    )
    columns = (("test", "%"), ("PGD", "%"), ("share of the spectrum that was lifted to be positive", "%"))
    return (Comparison(caption, columns, rows, (claim,), chosen_note(findings.tuned, _FORMS.values())),)


def _differs_structure(scale: Scale) -> Sequence[str]:
    where = {
        "smoke": "digits and N100-100-10 in place of CIFAR-10 and the paper's net",
        "small": "wong2018/small on 4,000 images of CIFAR-10, 8 epochs; 300 test images",
        "medium": "8,000 to 20,000 images, 20 to 30 epochs; 1,000 test images",
        "full": "no augmentation on MNIST",
    }
    return (where[scale], "images are centred, perturbations are not, as in the paper; PGD at 4/255 on CIFAR-10")


STUDIES = (
    Study("sgr2018.fig_cov", "covariance of perturbations", _structure_runs, _structure, _differs_structure, EVERY_SCALE),
    study("sgr2018.covfun_vs_full", "covariance function against full matrix", _form_runs, _form, differs),
)
