"""Srinivasan et al. 2018 (arXiv:1805.12017): Defense-GAN qualifies before anything is compared with it.

A generator that was trained too little loses to everything. So on a seed that is not judged it must keep the bare net's
clean accuracy up to 2 points, and reach the accuracy that the paper prints for it under black-box FGSM up to 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

import torch

from advbench.attacks.access import frozen
from advbench.attacks.rng import ExampleRNG
from advbench.defenses.defended import Defended
from advbench.defenses.inference.composition import Purified
from advbench.reproduction.findings import RunFindings
from advbench.reproduction.oblivious import scored
from advbench.reproduction.papers.malade2018.nets import Chosen, defense, one_pair, pair_of, table
from advbench.reproduction.study import Scale, Settings, Withheld
from advbench.zoo.data import Split

QUALIFYING = "Defense-GAN, qualifying"
CLEAN_WITHIN = 2.0
"""Points of clean accuracy that it may lose."""
PAPER_WITHIN = 5.0
"""Points that it may stay below the paper's black-box accuracy."""
_RECONSTRUCTED = 50
"""Images of the reconstruction error."""
_IMAGES: Mapping[Scale, int] = {"smoke": 10, "small": 300, "medium": 500, "full": 1000}
_CLEAN, _BARE, _ATTACKED, _PAPER, _ERROR = "GAN: clean", "GAN: bare", "GAN: black-box", "GAN: paper", "GAN: reconstruction"


def qualifying_run(scale: Scale) -> Settings:
    """Black-box FGSM on the bare net D and on Defense-GAN before it."""
    both = [defense("no_defense", scale), defense("defense_gan", scale)]
    return one_pair(scale, "D", both, n_examples=_IMAGES[scale], batch=min(50, _IMAGES[scale]))


def qualification(run: RunFindings, seed: int) -> dict[str, float]:
    """What decides whether Defense-GAN qualifies, in percent; and its reconstruction error, squared l2 by image."""
    gan, bare = (run.first(seed=seed, matrix="black-box", defense=name) for name in ("defense-gan", "none"))
    return {
        _CLEAN: float(gan.clean_accuracy),
        _BARE: float(bare.clean_accuracy),
        _ATTACKED: float(gan.accuracy),
        _PAPER: float(table("table1").cell("defense_gan", pair_of(run))),
        _ERROR: reconstruction_error(run.defended(gan), scored(run).first(_RECONSTRUCTED), seed),
    }


def reconstruction_error(defended: Defended, split: Split, seed: int) -> float:
    """The mean of ||G(z*) - x||^2 over images. TypeError for a model without a purifier."""
    if not isinstance(defended.model, Purified):
        raise TypeError(f"Expected a model behind a generator, got {type(defended.model).__name__}")
    rng = ExampleRNG.make(seed, "report", split.index).fork("purifier")
    with frozen(defended.model), torch.no_grad():
        remade = defended.model.purifier(split.x, rng)
    return fmean((remade - split.x).double().square().flatten(1).sum(dim=1).tolist())


def qualifies(chosen: Chosen) -> bool:
    """Whether Defense-GAN is compared; before anything was measured it is."""
    if _CLEAN not in chosen:
        return True
    kept = chosen[_BARE] - chosen[_CLEAN] <= CLEAN_WITHIN
    return kept and chosen[_PAPER] - chosen[_ATTACKED] <= PAPER_WITHIN


def told(chosen: Chosen) -> str:
    """Whether it qualifies, and by what; empty before anything was measured."""
    if _CLEAN not in chosen:
        return ""
    word = "qualifies" if qualifies(chosen) else "does not qualify, so that nothing is compared with it"
    return (
        f"Defense-GAN {word}: on a seed that is not judged it has {chosen[_CLEAN]:.1f}% clean where the bare net has "
        f"{chosen[_BARE]:.1f}% (at most {CLEAN_WITHIN:g} points less are allowed), and {chosen[_ATTACKED]:.1f}% under "
        f"black-box FGSM where the paper has {chosen[_PAPER]:.1f}% (at most {PAPER_WITHIN:g} less); its reconstruction "
        f"error is {chosen[_ERROR]:.1f} (squared l2 by clean image)"
    )


def withheld(chosen: Chosen) -> Withheld | None:
    """What a claim that names Defense-GAN cannot be where this did not qualify: it may fail by its other parts alone."""
    return None if qualifies(chosen) else Withheld("not tested", told(chosen))
