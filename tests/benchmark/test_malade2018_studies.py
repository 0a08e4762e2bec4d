"""The studies of Srinivasan et al. 2018: their settings, and the figures that they compute from cells and images."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from advbench import registry
from advbench.config import make_config
from advbench.reproduction import malade2018_relaxation, malade2018_whitebox
from advbench.reproduction.findings import Findings
from advbench.reproduction.malade2018 import STUDIES
from advbench.reproduction.malade2018_nets import DEFENSES, PAIRS, RADIUS, by_seed, substitutes, table
from advbench.reproduction.malade2018_relaxation import Way


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_every_run_names_components_that_there_are(study):
    for scale in study.scales:
        assert study.differs(scale)
        for settings in study.runs(scale).values():
            config = make_config(**settings)
            for spec in config.defense or ():
                defense = registry.create("defenses", spec)
                if spec.name in ("mala", "malade"):
                    assert defense.epsilon == pytest.approx(RADIUS if config.dataset != "cifar10" else 8 / 255)
            for spec in config.attack or ():
                assert config.norm in registry.create("attacks", spec).norms


def test_full_scale_has_the_papers_pairs_and_budgets():
    pairs = {f"{classifier}/{one}" for classifier, others in PAIRS["full"].items() for one in others}
    assert pairs == {row[0] for row in table("table1").rows}
    (full,) = (study.runs("full")["D"] for study in STUDIES if study.name == "malade2018.table1")
    gan = next(one for one in full["defense"] if one["name"] == "defense-gan")
    assert (gan["steps"], gan["restarts"]) == (200, 10)
    assert full["substitute_rounds"] == 6
    assert "seed" not in full


def cell(seed: int = 0, *, defense: str, attack: str, candidates: dict[str, float], accuracy: float = 50.0, **arguments):
    """A white-box or black-box cell as far as the studies look at it."""
    record = SimpleNamespace(
        seed=seed,
        target={"defense": {"name": defense, "arguments": arguments}},
        attack={"name": attack, "minimal_norm": attack == "carlini-wagner"},
        details={"candidates": candidates},
    )
    return SimpleNamespace(record=record, accuracy=accuracy, clean_accuracy=99.0)


class Run:
    """The cells of a run, found as `RunFindings` finds them."""

    def __init__(self, *cells, seeds=(0,), substitute=()):
        self.cells = cells
        self.plan = SimpleNamespace(config=SimpleNamespace(seed=seeds, substitute=substitute))

    def all(self, *, seed, defense, attack=None, **_):
        return [
            one
            for one in self.cells
            if (one.record.seed, one.record.target["defense"]["name"]) == (seed, defense)
            and attack in (None, one.record.attack["name"])
        ]


def test_figures_are_told_apart_by_seed_and_by_arguments():
    cells = [
        cell(seed, defense="malade", attack="fgsm", candidates={}, accuracy=10.0 * seed + sigma, sigma=sigma)
        for seed in (0, 1)
        for sigma in (0.1, 0.3)
    ]
    run = Run(*cells, seeds=(0, 1))
    assert by_seed(run, lambda one: one.accuracy, {"sigma": 0.3}, defense="malade") == (0.3, 10.3)
    with pytest.raises(ValueError, match="Expected one cell with seed=0, defense=malade; got 2"):
        by_seed(run, lambda one: one.accuracy, defense="malade")


def test_the_papers_attack_the_adaptive_and_the_ignorant_one_stand_apart():
    found = cell(defense="malade", attack="fgsm", candidates={"faithful": 0.6, "bpda": 0.3, "base": 0.9}, accuracy=25.0)
    figures = (malade2018_whitebox.through, malade2018_whitebox.worst, malade2018_whitebox.ignoring)
    assert [figure(found) for figure in figures] == pytest.approx([60.0, 25.0, 90.0])
    bare = cell(defense="none", attack="fgsm", candidates={"faithful": 0.1}, accuracy=10.0)
    assert [figure(bare) for figure in figures] == pytest.approx([10.0, 10.0, 10.0])


def test_the_stretched_images_of_a_minimal_norm_attack_do_not_count():
    found = cell(
        defense="malade",
        attack="carlini-wagner",
        candidates={"faithful": 0.5, "bpda": 0.4, "bpda-one-step": None, "whole budget": 0.0},
        accuracy=0.0,
    )
    assert malade2018_whitebox.worst(found) == pytest.approx(40.0)


def white_box(accuracies: dict[str, float]) -> Run:
    """FGSM, R+FGSM and PGD on every defense of classifier D, PGD leaving the given accuracies."""
    return Run(
        *(
            cell(defense=name, attack=attack, candidates={"faithful": 1.0}, accuracy=left)
            for column, name in DEFENSES.items()
            for attack, left in (("fgsm", 99.0), ("r-fgsm", 98.0), ("pgd", accuracies.get(column, 97.5)))
        )
    )


def test_a_line_says_what_the_adaptive_attack_breaks_and_by_how_much():
    findings = Findings({"D": white_box({"malade": 3.0})}, (0,))
    printed = table("table2")
    assert min(printed.cell("malade", attack, "D") for attack in ("FGSM", "R+FGSM")) == 94.74
    assert malade2018_whitebox._broken(findings) == [
        "malade on D: the adaptive attack leaves 3.0% at radius 0.3 where the paper reports 94.7% under FGSM and R+FGSM, "
        "91.7 points less"
    ]
    (nothing,) = malade2018_whitebox._broken(Findings({"D": white_box({})}, (0,)))
    assert "breaks nothing" in nothing


def test_the_headline_takes_the_least_of_black_box_and_adaptive_accuracy():
    black = Run(
        *(
            cell(defense=name, attack="fgsm", candidates={}, accuracy=left)
            for name, left in zip(DEFENSES.values(), (10.0, 60.0, 70.0, 20.0, 50.0), strict=True)
        ),
        substitute=(SimpleNamespace(name="malade2018/d"),),
    )
    assert substitutes(black) == ["substitute malade2018/d"]
    white = white_box({"malade": 65.0, "defense_gan": 40.0, "magnet": 55.0})
    (part,) = malade2018_whitebox._headline(Findings({"D": white, "D, black-box": black}, (0,))).parts
    assert part.differences == pytest.approx((65.0 - 50.0,))


def test_relaxed_images_are_shown_by_whether_they_were_restored():
    clean = torch.zeros(3, 1, 2, 2)
    states = torch.stack([clean + height for height in (1.0, 0.5, 0.25)])
    way = Way(clean, states, torch.arange(3), torch.tensor([True, True, False]), torch.tensor([True, False, True]))
    torch.testing.assert_close(malade2018_relaxation._distance(way), torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64))
    restored, failed = malade2018_relaxation._grids(way, "MALA")
    assert restored.rows == ("class 0",)
    assert failed.rows == ("class 1",)
    assert restored.columns == ("clean", "step 0", "step 1", "step 2")
