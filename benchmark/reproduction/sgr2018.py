"""Roth et al. 2018 (arXiv:1805.08736): structured gradient regularisation, transfer, and long-range correlated noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from advbench.defenses.kernels.covariance import autocorrelation, decay_length
from advbench.reproduction.findings import Findings
from advbench.reproduction.study import Claim, Comparison, Inequality, Ours, Pair, Scale, Settings, Study, above
from advbench.results.papers import load

MATRICES = {"appx_mnist_a": 32 / 255, "appx_mnist_b": 64 / 255}
"""The paper's two matrices of MNIST, and the radius of each."""
DECAYS = (1, 2, 4, 8, 16)

_COEFFICIENT = 0.3
"""Lambda of the gradient penalties at a unit mean diagonal; the paper prints none."""
_METHODS: Mapping[str, Settings] = {
    "clean": {"name": "none"},
    "wdecay": {"name": "weight-decay", "convolutions": True},
    "pgd": {"name": "pgd-augmented"},
    "fgsm": {"name": "fgsm-augmented"},
    "gn": {"name": "gradient-norm", "coefficient": _COEFFICIENT},
    "sgr_grad": {"name": "sgr", "coefficient": _COEFFICIENT, "perturbation": "gradient"},
    "sgr_sign": {"name": "sgr", "coefficient": _COEFFICIENT, "perturbation": "sign"},
    "fgsm_sgr": {"name": "sgr-fgsm", "coefficient": _COEFFICIENT},
    "pgd_sgr": {"name": "sgr-pgd", "coefficient": _COEFFICIENT},
}
_FEWER = ("clean", "wdecay", "pgd", "gn", "sgr_sign")
_GRADIENT_METHODS = ("gn", "sgr_grad", "sgr_sign", "fgsm_sgr", "pgd_sgr")
_NOISE: Mapping[str, Settings] = {
    "clean": {"name": "none"},
    "gn": {"name": "gradient-norm", "coefficient": _COEFFICIENT},
    "sgr": {"name": "sgr-correlated", "coefficient": _COEFFICIENT, "decay_length": 8.0},
    "lrc_augmented": {"name": "lrc-augmented"},
}
_BUDGETS: Mapping[Scale, Settings] = {
    "smoke": {"dataset": "digits", "epochs": 8, "n_examples": 200, "architecture": ["gu2014/n200-200-10"]},
    "small": {
        "dataset": "mnist",
        "epochs": 4,
        "train_examples": 4_000,
        "n_examples": 500,
        "architecture": ["sgr2018/mnist-cnn"],
    },
    "full": {"dataset": "mnist", "epochs": 50, "learning_rate": 1e-3, "architecture": ["sgr2018/mnist-cnn"]},
}


def _methods(scale: Scale) -> Mapping[str, Settings]:
    return _METHODS if scale == "full" else {name: _METHODS[name] for name in _FEWER}


def _matrix_study(name: str) -> Study:
    radius = MATRICES[name]

    def runs(scale: Scale) -> Mapping[str, Settings]:
        return {
            "matrix": {
                **_BUDGETS[scale],
                "matrix": ["transfer"],
                "defense": list(_methods(scale).values()),
                "norm": "linf",
                "epsilon": [radius],
                "attack": ["pgd(steps=20)"],
            }
        }

    return Study(
        f"sgr2018.{name}",
        f"PGD at {255 * radius:.0f}/255 on MNIST, from every net on every net",
        runs,
        lambda findings: _matrix(findings, name),
        _differs,
    )


def _matrix(findings: Findings, name: str) -> Sequence[Comparison]:
    table = load("sgr2018").tables[f"sgr2018.{name}"]
    labels = _labels(findings, "matrix", _METHODS)
    run = findings["matrix"]
    accuracy = {
        (row, column): tuple(
            run.one(seed=seed, target=labels[row], source=labels[column]).accuracy for seed in findings.seeds
        )
        for row in labels
        for column in labels
    }
    clean = {
        row: tuple(run.all(seed=seed, target=label)[0].clean_accuracy for seed in findings.seeds)
        for row, label in labels.items()
    }
    rows = tuple(
        (
            row,
            (
                Pair(table.cell("test", row), Ours(clean[row])),
                *(Pair(table.cell(column, row), Ours(accuracy[row, column])) for column in labels),
            ),
        )
        for row in labels
    )
    gradient = [row for row in _GRADIENT_METHODS if row in labels]
    claims = [
        Claim(
            "sgr2018.claim.clean_kept",
            "gradient regularisation costs at most 0.3 points of clean accuracy",
            tuple(
                Inequality(
                    f"{row} - clean + 0.3", tuple(a - b + 0.3 for a, b in zip(clean[row], clean["clean"], strict=True))
                )
                for row in gradient
            ),
        )
    ]
    if name == "appx_mnist_a":
        claims.append(
            Claim(
                "sgr2018.claim.mnist_whitebox",
                "under white-box PGD gradient regularisation is more than 40 points above plain training",
                tuple(
                    Inequality(f"{row} - clean", tuple(_gaps(accuracy[row, row], accuracy["clean", "clean"])), above=40.0)
                    for row in gradient
                ),
            )
        )
    columns = (("test", "%"), *((f"from {column}", "%") for column in labels))
    note = "rows are the nets under attack, columns those that the adversarials were made on; the diagonal is white-box"
    return (Comparison(table.caption, columns, rows, tuple(claims), (note,)),)


def _noise_runs(scale: Scale) -> Mapping[str, Settings]:
    return {
        "noise": {
            **_BUDGETS[scale],
            "matrix": ["white-box"],
            "defense": list(_NOISE.values()),
            "norm": "none",
            "attack": [{"name": "correlated-noise", "decay_length": float(decay), "sigma": 0.3} for decay in DECAYS],
        }
    }


def _noise(findings: Findings) -> Sequence[Comparison]:
    labels, run = _labels(findings, "noise", _NOISE), findings["noise"]

    def accuracy(row: str, decay: int) -> tuple[float, ...]:
        return tuple(
            next(
                cell.accuracy
                for cell in run.all(seed=seed, target=labels[row])
                if cell.record.attack["arguments"]["decay_length"] == decay
            )
            for seed in findings.seeds
        )

    found = {(row, decay): accuracy(row, decay) for row in labels for decay in DECAYS}
    rows = tuple((row, tuple(Pair(None, Ours(found[row, decay])) for decay in DECAYS)) for row in labels)
    claim = Claim(
        "sgr2018.claim.headline_lrc",
        "at decay length 16 and noise 0.3, SGR is at least 20 points above gradient-norm regularisation, and the gap is "
        "smaller at decay length 1",
        (
            Inequality("sgr - gn at 16", tuple(_gaps(found["sgr", 16], found["gn", 16])), above=20.0),
            above(
                "gap at 16 - gap at 1",
                tuple(_gaps(found["sgr", 16], found["gn", 16])),
                tuple(_gaps(found["sgr", 1], found["gn", 1])),
            ),
        ),
    )
    columns = tuple((f"decay length {decay}", "%") for decay in DECAYS)
    caption = "Accuracy on the worst of 100 draws of long-range correlated noise (figure 3 prints curves, on CIFAR-10)"
    return (Comparison(caption, columns, rows, (claim,)),)


def _covariance_runs(scale: Scale) -> Mapping[str, Settings]:
    return {
        "attacks": {
            **_BUDGETS[scale],
            "matrix": ["white-box"],
            "defense": ["none"],
            "norm": "linf",
            "epsilon": [32 / 255],
            "attack": ["fgsm", "pgd(steps=20)", "deepfool"],
        }
    }


def _covariance(findings: Findings) -> Sequence[Comparison]:
    run = findings["attacks"]
    data = decay_length(_centred_function(run.plan.data.train.x[:5_000]))
    rows = [("training images", (Pair(None, Ours((data,))),))]
    parts = []
    for name in ("fgsm", "pgd", "deepfool"):
        lengths = tuple(
            decay_length(autocorrelation(run.perturbations(run.one(seed=seed, attack=name)).double()))
            for seed in findings.seeds
        )
        rows.append((name, (Pair(None, Ours(lengths)),)))
        parts.append(Inequality(f"half of the images' decay length - {name}'s", tuple(data / 2 - each for each in lengths)))
    claim = Claim(
        "sgr2018.claim.short_range",
        "the decay length of attacks is less than half of the images' (the paper: far smaller, in plots)",
        tuple(parts),
    )
    caption = "Where the covariance function of perturbations falls below 1/e of its value at distance zero"
    return (Comparison(caption, (("decay length", "pixels"),), tuple(rows), (claim,)),)


def _centred_function(x: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return autocorrelation(x - x.mean(dim=0))


def _labels(findings: Findings, run: str, methods: Mapping[str, Settings]) -> dict[str, str]:
    """The targets' labels in the records, by the paper's names, for those that ran."""
    there = {cell.record.target["label"]: cell.record.target["defense"] for cell in findings[run].cells}
    facts = {label: {"name": defense["name"], **defense["arguments"]} for label, defense in there.items()}
    return {
        name: label
        for name, settings in methods.items()
        for label, found in facts.items()
        if all(found.get(key) == value for key, value in settings.items())
    }


def _gaps(ours: Sequence[float], others: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(ours, others, strict=True)]


def _differs(scale: Scale) -> Sequence[str]:
    sizes = {
        "smoke": "digits and N200-200-10 in place of MNIST and the paper's net, five of the nine methods",
        "small": "4 epochs on 4,000 images, 500 test images, five of the nine methods, no augmentation",
        "full": "no augmentation",
    }
    return (
        sizes[scale],
        f"lambda is {_COEFFICIENT} for every gradient penalty at a unit mean diagonal; the paper prints none",
        "radii are read as 32/255 and 64/255 for the captions are lost; PGD has 20 steps",
    )


STUDIES = (
    *(_matrix_study(name) for name in MATRICES),
    Study("sgr2018.fig3_lrc", "figure 3: long-range correlated noise", _noise_runs, _noise, _differs),
    Study("sgr2018.fig_cov", "covariance of perturbations", _covariance_runs, _covariance, _differs),
)
