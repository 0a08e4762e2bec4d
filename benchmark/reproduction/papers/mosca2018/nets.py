"""What the studies of Mosca & Magoulas 2018 share: nets, trainings and runs under FGSM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from advbench.reproduction.study import Ours, Scale, Settings, ambiguity

EPSILONS = (0.001, 0.01, 0.1, 0.2)
CONTROL, SGM = "none", "smooth-gradient"
VARIANTS = {"control": CONTROL, "sgm": SGM}
MNIST: Mapping[Scale, Settings] = {
    "smoke": {"dataset": "digits", "epochs": 10},
    "small": {"dataset": "mnist", "n_examples": 1_000, "optimizer": "wame", "learning_rate": 1e-3},
    "full": {"dataset": "mnist", "epochs": 50, "optimizer": "wame", "learning_rate": 1e-3, "schedule": "tenths"},
}
_SMALL: Mapping[str, Settings] = {
    "MNIST-DNN": {"train_examples": 10_000, "epochs": 8},
    "MNIST-CNN": {"train_examples": 3_000, "epochs": 4},
}
"""Of the trainings at small: on fewer images the DNN, whose dropout leaves a half of each of five layers, learns nothing."""

MORE_SEEDS: Mapping[Scale, int] = {"small": 2, "full": 2}
"""The training seeds of tables 4 and 5 beside those that are asked for: five, as in the paper."""

LEARNED = 95.0
"""Percent of clean test images that a control gets right, if changes of its accuracy are to mean anything."""
CIFAR: Settings = {
    "epochs": 100,
    "batch_size": 256,
    "optimizer": "wame",
    "learning_rate": 1e-3,
    "schedule": "half-tenth",
    "architecture": [{"name": "mosca2018/all-cnn", "whiten": False}],
}


def nets(scale: Scale) -> Mapping[str, Settings]:
    """The settings of a net's trainings, by the paper's name of it."""
    if scale == "smoke":
        return {"MNIST-DNN": {**MNIST[scale], "architecture": ["gu2014/n200-200-10"]}}
    found = {}
    for net, architecture in (("MNIST-DNN", "mosca2018/dnn"), ("MNIST-CNN", "mosca2018/cnn")):
        found[net] = {**MNIST[scale], **(_SMALL[net] if scale == "small" else {}), "architecture": [architecture]}
    if scale == "full":
        found |= {f"CIFAR-{classes}-CNN": {**CIFAR, "dataset": f"cifar{classes}-zca"} for classes in (10, 100)}
    return found


def attacked(net: Settings, defenses: Sequence[Settings], epsilons: Sequence[float], *matrices: str) -> Settings:
    """A run under FGSM, unclipped, of which the white-box matrix has the own gradients."""
    return {
        **net,
        "matrix": list(matrices),
        "defense": [*defenses],
        "norm": "linf",
        "clip": False,
        "epsilon": list(epsilons),
        "attack": ["fgsm"],
    }


def sgm(rate: float = 0.2, gradient: str = "per-example") -> Settings:
    """The smooth gradient method as a run takes it."""
    return {"name": SGM, "input_lr": rate, "gradient": gradient}


def runs(scale: Scale) -> Mapping[str, Settings]:
    """Own-gradient adversarials in the white-box matrix, the control's in the transfer matrix."""
    return {
        f"{net}{suffix}": {
            **attacked(settings, [{"name": CONTROL}, sgm()], EPSILONS, "white-box", "transfer"),
            "augmentation": ("elastic" if net.startswith("MNIST") else "rotate-zoom-flip") if suffix else "none",
        }
        for net, settings in nets(scale).items()
        for suffix in ("", "-AUG")
    }


def medians(values: Sequence[float]) -> Ours:
    """As the paper shows its runs."""
    return Ours(values, "median")


def differs(scale: Scale) -> Sequence[str]:
    """What every study does otherwise than the paper."""
    sizes = {
        "smoke": "digits and N200-200-10 in place of MNIST and the paper's nets, 10 epochs of Adam",
        "small": "WAME, whose rate rises and falls, for 8 epochs on 10,000 images for the DNN and 4 on 3,000 for the CNN; "
        "1,000 test images are attacked, all 10,000 classified; MNIST only",
        "full": "no weight decay in the training; the weights are those of the last epoch",
    }
    return (
        sizes[scale],
        "medians over the training seeds",
        ambiguity("mosca2018.amb.gradient_scale"),
    )
