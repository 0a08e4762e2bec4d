"""The attacker who knows a defense of Gu & Rigazio 2014 (arXiv:1412.5068), beside the paper's, who does not.

The paper crafts its adversarials on the net without the defense and shows them to the net with it. Beside that error stands
the one of an attacker who knows the defense, at the distance that the paper's adversarials have on average.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from advbench.registry.specs import Spec
from advbench.reproduction.clean import clean_on_all
from advbench.reproduction.findings import Findings, ScoredCell
from advbench.reproduction.measured import SeedFigure
from advbench.reproduction.oblivious import crafted, error
from advbench.reproduction.papers.gu2014.nets import attacked, training_of
from advbench.reproduction.study import Claim, Scale, Settings, above, claim_of
from advbench.results.papers import PaperTable, load
from advbench.zoo.data import Split

ADAPTIVE: Mapping[Scale, str] = {"smoke": "pgd(steps=10)", "small": "apgd-ce", "medium": "apgd-ce", "full": "apgd-ce"}
"""The attack on the defended nets."""
_FEWER: Mapping[tuple[Scale, bool], Settings] = {
    ("smoke", False): {"n_examples": 20},
    ("small", False): {"n_examples": 100},
    ("small", True): {"n_examples": 20},
    ("medium", False): {"n_examples": 300},
    ("medium", True): {"n_examples": 100},
}
"""The test images that the defended nets are attacked on, by scale and whether the net is the ConvNet."""
_BROKEN = 5.0
"""Points of error between a defended net and the bare one at which the defense is said to be broken."""
_SIZES: Mapping[Scale, str] = {
    "smoke": "digits in place of MNIST, 4 epochs, N100-100-10 and N200-200-10 only (figure 1: the first), 40 test images, "
    "20 of them to attack with the defense known (10 in figure 1, 15 for the distortion of the stack, the first net's); "
    "autoencoders learn from DeepFool's adversarials of 40 training images",
    "small": "5 epochs, 1,000 test images, 100 to attack with the defense known (40 in figure 1, 200 for the distortion of "
    "stacks); the ConvNet has 5 epochs on 6,000 images, 100 test images and 20 to attack with the defense known, and "
    "no autoencoder learns from its adversarials; the others learn from those of 6,000 training images",
    "medium": "20 epochs, 1,000 test images and 300 to attack with the defense known (100 in figure 1); the ConvNet has 8 "
    "epochs, 300 test images and 100 to attack with the defense known (40 in figure 1); autoencoders learn from the "
    "adversarials of 6,000 training images (the ConvNet's: 1,000)",
    "full": "optimizer and schedule, which the paper does not print",
}


def table_of(name: str) -> PaperTable:
    """A table of the paper by its name, such as `table2`."""
    return load("gu2014").tables[f"gu2014.{name}"]


def printed_distortion(net: str) -> float:
    """The paper's average distortion of a net's adversarials, RMS."""
    return table_of("table1").cell("avg_distortion", net)


def radius(net: str) -> float:
    """The same as an l2 norm."""
    return round(printed_distortion(net) * math.sqrt(784), 3)


def known_run(scale: Scale, net: str, defenses: Sequence[Spec], **settings: object) -> Settings:
    """A run in which the attacker knows the defenses, and of the bare net beside them."""
    return {
        **attacked(scale, net, []),
        "defense": [training_of(net), *map(str, defenses)],
        "attack": [ADAPTIVE[scale]],
        "epsilon": [radius(net)],
        **_FEWER.get((scale, net == "ConvNet"), {}),
        **settings,
    }


def run_of(net: str) -> str:
    """The name of the run in which the attacker knows a net's defenses."""
    return f"{net}, defended"


def adversarials(findings: Findings, net: str, seed: int) -> Split:
    """The paper's adversarials of the bare net."""
    return crafted(findings[net], findings[net].one(seed=seed, attack="lbfgs"))


def cell_of(findings: Findings, net: str, defense: Spec | None, seed: int) -> ScoredCell:
    """The cell of the attacker who knows the defense, which may be named by some arguments; of the bare net where None."""
    wanted = Spec(training_of(net)) if defense is None else defense
    for cell in findings[run_of(net)].all(seed=seed, matrix="white-box", defense=wanted.name):
        arguments = cell.record.target["defense"]["arguments"]
        if all(arguments[name] == value for name, value in wanted.arguments):
            return cell
    raise ValueError(f"Expected a cell of {wanted} on {net} with seed={seed}; got none")


def clean_error(findings: Findings, net: str, defense: Spec) -> SeedFigure:
    """The defended net's error on all test images, by seed."""
    run = findings[run_of(net)]
    return 100.0 - SeedFigure.of(clean_on_all(run, cell_of(findings, net, defense, seed)) for seed in findings.seeds)


def oblivious_error(findings: Findings, net: str, defense: Spec) -> SeedFigure:
    """The defended net's error on the adversarials of the bare net, by seed."""
    return SeedFigure.of(
        error(
            findings[run_of(net)].defended(cell_of(findings, net, defense, seed)),
            adversarials(findings, net, seed),
            seed=seed,
        )
        for seed in findings.seeds
    )


def adaptive_error(findings: Findings, net: str, defense: Spec | None) -> SeedFigure:
    """The error under the attacker who knows the defense, by seed."""
    return 100.0 - SeedFigure.of(cell_of(findings, net, defense, seed).accuracy for seed in findings.seeds)


def verdict_of_the_attacker(
    name: str, rows: Sequence[tuple[str, Sequence[float], Sequence[float], Sequence[float]]]
) -> tuple[Claim, str]:
    """The claim that the attacker who knows more does more harm, and a line that says where the defense is broken.

    rows: label; errors on the bare net's adversarials, under the adaptive attack, and of the bare net under that attack.
    """
    claim = claim_of(
        f"gu2014.adaptive.{name}", (above(label, adaptive, oblivious) for label, oblivious, adaptive, _ in rows)
    )
    broken = [
        f"{label} {fmean(oblivious):.0f}% -> {fmean(adaptive):.0f}% (bare {fmean(bare):.0f}%)"
        for label, oblivious, adaptive, bare in rows
        if fmean(adaptive) > fmean(oblivious) + _BROKEN and fmean(adaptive) > fmean(bare) - _BROKEN
    ]
    said = "; ".join(broken) or "none"
    return claim, (
        f"broken by the adaptive attack (errors as many as without the defense, within {_BROKEN:.0f} points), "
        f"{len(broken)} of {len(rows)}: {said}"
    )


def differs(scale: Scale) -> Sequence[str]:
    """What is other than in section 3 of the paper."""
    return (
        _SIZES[scale],
        f"'attacked itself': by {ADAPTIVE[scale]} (figure 1: PGD) at the l2 distance that the paper prints as the bare "
        "net's average distortion, the worst over the defense's surrogates; the paper attacks bare nets and, with L-BFGS, "
        "the stacks of table 3",
        "blur has the deviation of OpenCV's rule and mirrored borders, autoencoders are ReLU with sigmoid output and "
        "squared error, one clean image for each adversarial, noise comes behind the nonlinearity (the paper prints none)",
        "the curves of figure 1 are on the first 300 test images (those of the ConvNet at small on 100), one draw of 20 "
        "passes each",
    )
