"""The gauntlet's models: small networks that nobody tuned an attack on, made by a script in plain PyTorch.

Neither advbench's training loop nor its defenses take part. Weights lie in the user's cache folder, never in the repository;
the data are MNIST and the subset of CIFAR-10 in the folder $ADVBENCH_DATA.

**The split.** Twenty models. Eight serve for choosing settings of attacks, twelve only judge. A whole mechanism is on one
side: no setting is chosen on a kind of network that judges. Both halves hold networks whose gradients are masked.
`MODELS` says the half, the seed, and the norms and radii of every model, and was fixed before any attack was measured.

- choosing: TRADES; one-step training that overfits catastrophically; sigmoid and tanh units; quantised and thermometer
  inputs behind a straight-through gradient; batch normalisation; logits times 1e-3 and times 1e3.
- judging: the LeNet trained by PGD from the full radius at linf 0.3, whose gradients are masked in l2; l2- and l1-trained;
  distillation at temperature 100; k-winners-take-all; global average pooling; a vision transformer; an averaged ensemble;
  two, three and a hundred classes; noise at the input.

**Norms and radii.** Every model is attacked in the norm of its training (the first of `radii`) and in one foreign norm, on
the first test images that it gets right. A radius that is None is set by the references alone, before ours run: the median
over the images of the smallest distance that the references of DDN, FMN, DeepFool and FAB find, rounded to two digits, at
most `LARGEST`. About half of the images then withstand, where a paired test sees most.

**The third lot.** Four more models, drawn from `THIRD_LOT_SEED` by `third_lot`: network, units, training, radius and scale
of logits at random. They are made and attacked once, after the attacks are frozen, and printed as they fall.

**Images.** Those of all but the LeNet are averaged to half their width and height, 14 x 14 or 16 x 16, so that the whole
gauntlet runs in minutes on one core.

**Labels by rule.** Two classes: the parity of MNIST's digits. Three: machines, mammals, and the other animals of CIFAR-10. A
hundred: two digits side by side.

**Noise at the input** is drawn anew for every training batch; at test time the logits are the mean over four draws that
belong to the model, so that its answers repeat.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from advbench.attacks.threat import Norm

Half = Literal["choosing", "judging", "third"]
Task = Literal["mnist", "parity", "pairs", "cifar", "kinds"]
Training = Literal["plain", "pgd", "trades", "one-step", "distilled", "noise"]

LARGEST: dict[Norm, float] = {"linf": 0.3, "l2": 3.0, "l1": 30.0}
"""The largest radius that the rule sets."""

THIRD_LOT_SEED = 20261130
"""Fixed before any attack was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a model is made and attacked.

    task: data and labels. halved: whether images are averaged to half their width and height. network: a name in
    `networks.NETWORKS`. units: the activation. scale: what its logits are multiplied with. training, norm, radius: how it is
    trained, and against which ball. updates: Adam's, of `batch` images, at most at `rate`. seed: of weights, batches and
    draws. radii: of the norms in which it is attacked, None by the rule. images: how many. queries: of Square, alone and in
    AutoAttack.
    """

    name: str
    half: Half
    mechanism: str
    task: Task = "mnist"
    halved: bool = True
    network: str = "strided"
    units: str = "relu"
    scale: float = 1.0
    training: Training = "plain"
    norm: Norm = "linf"
    radius: float = 0.0
    updates: int = 500
    batch: int = 64
    rate: float = 5e-3
    seed: int = 0
    radii: Mapping[Norm, float | None] = field(default_factory=dict)
    images: int = 100
    queries: int = 1000


MODELS: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        # For choosing settings.
        Recipe(
            name="trades",
            half="choosing",
            mechanism="TRADES at linf 0.3, beta 6",
            network="pooled",
            training="trades",
            radius=0.3,
            updates=1000,
            batch=32,
            rate=2e-3,
            seed=101,
            radii={"linf": None, "l2": None},
        ),
        Recipe(
            name="one-step",
            half="choosing",
            mechanism="one-step training at linf 0.3 that overfits catastrophically",
            training="one-step",
            radius=0.3,
            network="lenet",
            rate=2e-3,
            seed=102,
            radii={"linf": None, "l2": None},
        ),
        Recipe(
            name="saturating",
            half="choosing",
            mechanism="sigmoid and tanh units",
            network="saturating",
            seed=103,
            radii={"l2": None, "l1": None},
        ),
        Recipe(
            name="quantised",
            half="choosing",
            mechanism="inputs of four levels, straight-through gradient",
            network="quantised",
            seed=104,
            radii={"linf": None, "l2": None},
        ),
        Recipe(
            name="thermometer",
            half="choosing",
            mechanism="thermometer code of ten levels, straight-through gradient",
            network="thermometer",
            seed=105,
            radii={"linf": None, "l2": None},
        ),
        Recipe(
            name="batch-norm",
            half="choosing",
            mechanism="batch normalisation",
            task="cifar",
            network="batch-norm",
            seed=106,
            radii={"linf": None, "l1": None},
        ),
        Recipe(
            name="small-logits",
            half="choosing",
            mechanism="logits times 1e-3",
            scale=1e-3,
            seed=107,
            radii={"linf": None, "l2": None},
        ),
        Recipe(
            name="large-logits",
            half="choosing",
            mechanism="logits times 1e3",
            scale=1e3,
            seed=108,
            radii={"l2": None, "l1": None},
        ),
        # These only judge.
        Recipe(
            name="lenet",
            half="judging",
            mechanism="PGD from the full radius at linf 0.3, max pooling: gradients are masked in l2",
            halved=False,
            network="lenet",
            training="pgd",
            radius=0.3,
            updates=2200,
            batch=32,
            rate=1e-3,
            seed=201,
            radii={"linf": 0.3, "l2": 1.5},
            images=500,
            queries=5000,
        ),
        Recipe(
            name="l2-trained",
            half="judging",
            mechanism="PGD at l2 0.75",
            training="pgd",
            norm="l2",
            radius=0.75,
            seed=202,
            radii={"l2": 0.75, "linf": None},
        ),
        Recipe(
            name="l1-trained",
            half="judging",
            mechanism="PGD at l1 4",
            training="pgd",
            norm="l1",
            radius=4.0,
            seed=203,
            radii={"l1": 4.0, "l2": None},
        ),
        Recipe(
            name="distilled",
            half="judging",
            mechanism="distillation at temperature 100",
            training="distilled",
            seed=204,
            radii={"linf": None, "l2": None},
        ),
        Recipe(
            name="winners",
            half="judging",
            mechanism="k-winners-take-all, one in ten units",
            units="winners",
            seed=205,
            radii={"linf": None, "l2": None},
        ),
        Recipe(
            name="average-pooling",
            half="judging",
            mechanism="global average pooling",
            task="cifar",
            network="average-pooling",
            updates=1500,
            seed=206,
            radii={"l2": None, "linf": None},
        ),
        Recipe(
            name="transformer",
            half="judging",
            mechanism="a vision transformer of two blocks",
            task="cifar",
            network="transformer",
            updates=1500,
            rate=2e-3,
            seed=207,
            radii={"linf": None, "l1": None},
        ),
        Recipe(
            name="ensemble",
            half="judging",
            mechanism="the mean probability of three networks",
            network="ensemble",
            seed=208,
            radii={"l2": None, "linf": None},
        ),
        Recipe(
            name="two-classes",
            half="judging",
            mechanism="two classes",
            task="parity",
            seed=209,
            radii={"linf": None, "l2": None},
        ),
        Recipe(
            name="three-classes",
            half="judging",
            mechanism="three classes",
            task="kinds",
            seed=210,
            radii={"linf": None, "l1": None},
        ),
        Recipe(
            name="hundred-classes",
            half="judging",
            mechanism="a hundred classes",
            task="pairs",
            updates=1000,
            seed=211,
            radii={"l2": None, "linf": None},
        ),
        Recipe(
            name="noise",
            half="judging",
            mechanism="noise at the input, the mean over four draws",
            network="noisy",
            training="noise",
            seed=212,
            radii={"l2": None, "linf": None},
        ),
    )
}


def third_lot(seed: int = THIRD_LOT_SEED) -> list[Recipe]:
    """Four recipes drawn at random: the same for the same seed."""
    draw = random.Random(seed)
    found = []
    for number in range(4):
        norm: Norm = draw.choice(("linf", "l2"))
        training: Training = draw.choice(("plain", "pgd", "trades", "one-step", "distilled"))
        foreign: Norm = "l2" if norm == "linf" else "linf"
        if training in ("trades", "one-step"):
            norm, foreign = "linf", "l2"
        found.append(
            Recipe(
                name=f"third-{number}",
                half="third",
                mechanism="drawn at random",
                network=draw.choice(("strided", "pooled", "saturating", "quantised", "ensemble", "transformer")),
                units=draw.choice(("relu", "softplus", "tanh", "winners")),
                scale=draw.choice((1e-3, 1.0, 1e3)),
                training=training,
                norm=norm,
                radius=draw.choice((0.1, 0.2, 0.3)) if norm == "linf" else draw.choice((0.5, 1.0, 2.0)),
                updates=draw.choice((600, 1200)),
                seed=draw.randrange(1000, 2000),
                radii={norm: None, foreign: None},
            )
        )
    return found


def recipe_of(name: str) -> Recipe:
    """The recipe of a name, of the third lot too. Raises ValueError for an unknown one."""
    known = MODELS | {recipe.name: recipe for recipe in third_lot()}
    if name not in known:
        raise ValueError(f"Expected a model among {', '.join(known)}, got {name!r}")
    return known[name]
