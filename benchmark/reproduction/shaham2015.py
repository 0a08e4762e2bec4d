"""Shaham et al. 2015 (arXiv:1511.05432): robust optimisation, on a baseline's adversarials and on one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from advbench.reproduction.findings import Cell, Findings
from advbench.reproduction.study import Claim, Comparison, Ours, Pair, Scale, Settings, Study, above
from advbench.results.papers import load
from advbench.results.statistics import Values, clean_correct

NORMS = ("l1", "l2", "linf")
PIXELS_PER_UNIT = 0.275
"""A standard deviation of MNIST's pixels at 32 x 32, in which the authors' scripts count."""
RADII = {"l1": 0.55, "l2": 0.55, "linf": 0.055}
"""Of the training, in pixel units of [0, 1]: the scripts' 2, 2 and 0.2 units."""
SET_RADII = (0.5, 1.0, 2.0)
"""Of the fixed adversarials, in radii of the training."""

_BASELINE = "none"
_NETS = {"baseline": _BASELINE, "robust_l1": "robust-l1", "robust_l2": "robust-l2", "robust_linf": "robust-linf"}
_SWEEP = tuple(round(PIXELS_PER_UNIT * step / 10, 5) for step in range(1, 6))
_BUDGETS: Mapping[Scale, Settings] = {
    "smoke": {"dataset": "digits", "epochs": 8, "architecture": ["gu2014/n100-100-10"]},
    "small": {
        "dataset": "mnist",
        "epochs": 5,
        "train_examples": 12_000,
        "n_examples": 2_000,
        "architecture": ["shaham2015/convnet"],
    },
    "full": {
        "dataset": "mnist",
        "epochs": 120,
        "batch_size": 100,
        "optimizer": "sgd",
        "learning_rate": 0.01,
        "schedule": "constant",
        "architecture": ["shaham2015/convnet"],
    },
}


def _defenses() -> list[Settings]:
    """The paper's trainings: without clipping, from scratch."""
    robust = [{"name": f"robust-{norm}", "epsilon": RADII[norm], "clip": False} for norm in NORMS]
    return [{"name": _BASELINE}, *robust]


def _table1_runs(scale: Scale) -> Mapping[str, Settings]:
    return {
        norm: {
            **_BUDGETS[scale],
            "matrix": ["transfer"],
            "defense": _defenses(),
            "norm": norm,
            "clip": False,
            "epsilon": [factor * RADII[norm] for factor in SET_RADII],
            "attack": ["fgsm" if norm == "linf" else "fgm"],
        }
        for norm in NORMS
    }


def _table1(findings: Findings) -> Sequence[Comparison]:
    table = load("shaham2015").tables["shaham2015.table1"]
    clean = {net: _clean(findings, defense) for net, defense in _NETS.items()}
    fixed = {net: {norm: _on_fixed_set(findings, norm, defense) for norm in NORMS} for net, defense in _NETS.items()}
    whole = {net: tuple(np.mean([by_norm[norm] for norm in NORMS], axis=0)) for net, by_norm in fixed.items()}
    columns = (("clean", "%"), ("fixed set", "%"), *((f"fixed set, {norm} part", "%") for norm in NORMS))
    rows = tuple(
        (
            net,
            (
                Pair(table.cell("clean_test_accuracy", net), Ours(clean[net])),
                Pair(table.cell("A_mnist_accuracy", net), Ours(whole[net])),
                *(Pair(None, Ours(fixed[net][norm])) for norm in NORMS),
            ),
        )
        for net in _NETS
    )
    claims = (
        Claim(
            "shaham2015.claim.clean",
            "every robust net is more accurate on clean images than the baseline",
            tuple(
                above(f"clean {net} - clean baseline", clean[net], clean["baseline"]) for net in _NETS if net != "baseline"
            ),
        ),
        Claim(
            "shaham2015.claim.fixed_set",
            "on the fixed set: linf above l2 above l1 above the baseline",
            tuple(
                above(f"fixed set, {better} - {worse}", whole[better], whole[worse])
                for better, worse in (("robust_linf", "robust_l2"), ("robust_l2", "robust_l1"), ("robust_l1", "baseline"))
            ),
        ),
        Claim(
            "shaham2015.claim.best_clean",
            "the linf net has the best clean accuracy",
            tuple(
                above(f"clean robust_linf - clean {net}", clean["robust_linf"], clean[net])
                for net in _NETS
                if net != "robust_linf"
            ),
        ),
    )
    sizes = [sum(int(_set(findings, norm, seed).sum()) for norm in NORMS) for seed in findings.seeds]
    note = f"the fixed set has {min(sizes)} to {max(sizes)} adversarials of a baseline; each norm counts a third"
    return (Comparison(table.caption, columns, rows, claims, (note,)),)


def _figure3_runs(scale: Scale) -> Mapping[str, Settings]:
    return {
        "own gradients": {
            **_BUDGETS[scale],
            "matrix": ["white-box"],
            "defense": _defenses(),
            "norm": "linf",
            "clip": False,
            "epsilon": list(_SWEEP),
            "attack": ["fgsm"],
        }
    }


def _figure3(findings: Findings) -> Sequence[Comparison]:
    run = findings["own gradients"]
    curves = {
        net: {
            epsilon: tuple(run.one(seed=seed, defense=defense, epsilon=epsilon).accuracy for seed in findings.seeds)
            for epsilon in _SWEEP
        }
        for net, defense in _NETS.items()
    }
    rows = tuple((net, tuple(Pair(None, Ours(curve[epsilon])) for epsilon in _SWEEP)) for net, curve in curves.items())
    columns = tuple((f"ε {epsilon / PIXELS_PER_UNIT:.1f} ({epsilon:.3f})", "%") for epsilon in _SWEEP)
    claim = Claim(
        "shaham2015.claim.own_gradient",
        "at every radius each robust net is more accurate on its own fast-sign adversarials than the baseline on its own",
        tuple(
            above(f"{net} - baseline at ε {epsilon:.3f}", curves[net][epsilon], curves["baseline"][epsilon])
            for net in _NETS
            if net != "baseline"
            for epsilon in _SWEEP
        ),
    )
    return (
        Comparison(
            "Accuracy on one's own fast-sign adversarials, by the radius in standardised units (in pixel units)",
            columns,
            rows,
            (claim,),
        ),
    )


def _clean(findings: Findings, defense: str) -> tuple[float, ...]:
    run = findings["linf"]
    return tuple(run.all(seed=seed, defense=defense)[0].clean_accuracy for seed in findings.seeds)


def _on_fixed_set(findings: Findings, norm: str, defense: str) -> tuple[float, ...]:
    """Accuracy on the baseline's adversarials of one norm, by seed, in percent."""
    found = []
    for seed in findings.seeds:
        chosen = _set(findings, norm, seed)
        answers = np.stack([_answers(cell) for cell in _from_baseline(findings, norm, defense, seed)])
        found.append(100.0 * float(answers[chosen].mean()) if chosen.any() else float("nan"))
    return tuple(found)


def _set(findings: Findings, norm: str, seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """The fixed adversarials, (radii, n): what the baseline gets right clean and wrong perturbed."""
    cells = _from_baseline(findings, norm, _BASELINE, seed)
    return np.stack([clean_correct(cell.examples) & (_answers(cell) == 0) for cell in cells])


def _answers(cell: Cell) -> Values:
    """The share of correct answers on the perturbed images, whatever becomes of the clean ones, (n,)."""
    shares: Values = cell.examples.report_correct / cell.examples.draws
    return shares


def _from_baseline(findings: Findings, norm: str, defense: str, seed: int) -> list[Cell]:
    """The cells of one target under the baseline's adversarials, by radius."""
    label = findings[norm].all(seed=seed, defense=_BASELINE)[0].record.target["label"]
    found = findings[norm].all(seed=seed, defense=defense, source=label)
    return sorted(found, key=lambda cell: float(cell.record.threat["epsilon"]))


def _differs(scale: Scale) -> Sequence[str]:
    sizes = {
        "smoke": "digits and N100-100-10 in place of MNIST and the convnet, 8 epochs",
        "small": "5 epochs of Adam on 12,000 images, and 2,000 test images",
        "full": "no weight decay in the training",
    }
    return (
        sizes[scale],
        "radii are the public scripts' (0.2, 2, 2 standard deviations for linf, l2, l1), for the text prints none",
        "images of 28 x 28 are attacked in units of pixels; the paper's are 32 x 32, standardised",
        "every seed has a baseline and a fixed set of its own, made at 0.5, 1 and 2 training radii",
    )


STUDIES = (
    Study("shaham2015.table1", "table 1: clean images and a baseline's adversarials", _table1_runs, _table1, _differs),
    Study("shaham2015.fig3", "figure 3: accuracy on one's own adversarials", _figure3_runs, _figure3, _differs),
)
