"""Shaham et al. 2015, figures 3 and 6: accuracy on one's own fast-sign adversarials against their radius."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from advbench.reproduction.clean import clean_by_seed
from advbench.reproduction.findings import Findings
from advbench.reproduction.measured import SeedFigure
from advbench.reproduction.papers.shaham2015.nets import (
    CIFAR,
    CIFAR_PIXELS_PER_UNIT,
    CIFAR_RADII,
    MNIST,
    MORE_SEEDS,
    NETS,
    PIXELS_PER_UNIT,
    RADII,
    SWEEP,
    defenses,
    differs,
    differs_cifar,
)
from advbench.reproduction.study import Comparison, Ours, Plot, Scale, Series, Settings, Study, above, claim_of


def sweep_runs(budget: Settings, radii: Mapping[str, float], factors: Sequence[float]) -> Mapping[str, Settings]:
    """Each net's own fast-sign adversarials at several radii."""
    return {
        "own gradients": {
            **budget,
            "matrix": ["white-box"],
            "defense": defenses(radii),
            "norm": "linf",
            "clip": False,
            "epsilon": [round(factor * radii["linf"], 5) for factor in factors],
            "attack": ["fgsm"],
        }
    }


def _figure3_runs(scale: Scale) -> Mapping[str, Settings]:
    return sweep_runs(MNIST[scale], RADII, SWEEP)


def _figure6_runs(scale: Scale) -> Mapping[str, Settings]:  # noqa: ARG001
    return sweep_runs(CIFAR, CIFAR_RADII, SWEEP)


def _sweep(findings: Findings, *, unit: float) -> Sequence[Comparison]:
    """unit: a standard deviation of the pixels, in which the scripts count."""
    run = findings["own gradients"]
    radii = run.plan.config.epsilon or ()
    curves = {
        net: {
            epsilon: SeedFigure.of(run.one(seed=seed, defense=defense, epsilon=epsilon).accuracy for seed in findings.seeds)
            for epsilon in radii
        }
        for net, defense in NETS.items()
    }
    clean = {
        net: clean_by_seed(run, [run.one(seed=seed, defense=defense, epsilon=radii[0]) for seed in findings.seeds])
        for net, defense in NETS.items()
    }
    claim = claim_of(
        "shaham2015.claim.own_gradient",
        (
            above(f"{net} - baseline at ε {epsilon:.3g}", curves[net][epsilon], curves["baseline"][epsilon])
            for net in NETS
            if net != "baseline"
            for epsilon in radii
        ),
    )
    plot = Plot(
        "Accuracy on one's own fast-sign adversarials, clean at 0",
        f"linf radius in pixels ({unit:g} to a standardised unit)",
        "accuracy (%)",
        tuple(
            Series(net, (0.0, *radii), (Ours(clean[net]), *(Ours(curve[epsilon]) for epsilon in radii)))
            for net, curve in curves.items()
        ),
    )
    return (Comparison(plot.caption, (), (), (claim,), plots=(plot,)),)


STUDIES = (
    Study(
        "shaham2015.fig3",
        "figure 3: accuracy on one's own adversarials",
        _figure3_runs,
        partial(_sweep, unit=PIXELS_PER_UNIT),
        differs,
        more_seeds=MORE_SEEDS,
    ),
    Study(
        "shaham2015.fig6",
        "figure 6: figure 3 on CIFAR-10",
        _figure6_runs,
        partial(_sweep, unit=CIFAR_PIXELS_PER_UNIT),
        differs_cifar,
        scales=("full",),
    ),
)
