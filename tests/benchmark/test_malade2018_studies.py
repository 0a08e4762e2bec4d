"""The studies of Srinivasan et al. 2018: their settings, and the figures that they compute from cells and images."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from advbench.config import make_config
from advbench.defenses.defended import Defended, Surrogate
from advbench.defenses.inference.composition import purified
from advbench.registry import registry
from advbench.reproduction.claim_verdicts import judge_claims, verdict
from advbench.reproduction.findings import Findings
from advbench.reproduction.measured import Figure, SeedFigure
from advbench.reproduction.papers.malade2018 import blackbox, gan, relaxation, shared, sweeps, whitebox
from advbench.reproduction.papers.malade2018.grid import FAMILIES, Schedule
from advbench.reproduction.papers.malade2018.nets import (
    CLASSIFIERS,
    DEFENSES,
    OFFSET,
    PAIRS,
    RADIUS,
    by_seed,
    chosen_key,
    schedule,
    substitutes,
    table,
)
from advbench.reproduction.papers.malade2018.relaxation import Way
from advbench.reproduction.papers.malade2018.schedules import SEARCH
from advbench.reproduction.papers.malade2018.studies import STUDIES
from advbench.reproduction.study import FIRST_SEEDS
from advbench.reproduction.tuning import Tuned
from advbench.results.record import Examples
from advbench.zoo.data import Split


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_every_run_names_components_that_there_are(study):
    for scale in study.scales:
        assert study.differs(scale)
        for settings in study.runs(scale).values():
            config = make_config(**{name: value for name, value in settings.items() if name != FIRST_SEEDS})
            for spec in config.defense or ():
                defense = registry.defenses.create(spec)
                if spec.name in ("mala", "malade"):
                    # A schedule is chosen on a seed that is not judged, but for CIFAR-10, which has no such search.
                    assert defense.searches == (config.dataset == "cifar10")
                    assert not defense.searches or defense.epsilon == pytest.approx(8 / 255)
            for spec in config.attack or ():
                assert config.norm in registry.attacks.create(spec).norms


def test_full_scale_has_the_papers_pairs_and_budgets():
    pairs = {f"{classifier}/{one}" for classifier, others in PAIRS["full"].items() for one in others}
    assert pairs == {row[0] for row in table("table1").rows}
    (full,) = (study.runs("full")["D"] for study in STUDIES if study.name == "malade2018.table1")
    gan = next(one for one in full["defense"] if one["name"] == "defense-gan")
    assert (gan["steps"], gan["restarts"]) == (200, 10)
    assert full["substitute_rounds"] == 6
    assert "seed" not in full


IMAGES = 200


def outcomes(right: np.ndarray) -> Examples:
    """Of a deterministic model that is right on all clean images, and on those images under attack."""
    names = ("distance_l0", "distance_l1", "distance_l2", "distance_linf", "rms", "image_l2")
    index, counts = np.arange(IMAGES), right.astype(np.int16)
    return Examples(
        index=index,
        label=index,
        clean_prediction=index,
        draws=1,
        clean_correct=np.ones(IMAGES, np.int16),
        select_correct=counts,
        report_correct=counts,
        **dict.fromkeys(names, np.zeros(IMAGES)),
    )


def cell(
    seed: int = 0,
    *,
    defense: str,
    attack: str,
    candidates: dict[str, float | None],
    accuracy: float = 50.0,
    right: np.ndarray | None = None,
    **arguments,
):
    """A white-box or black-box cell as far as the studies look at it: the first images are right, or those of `right`."""
    record = SimpleNamespace(
        seed=seed,
        target={"defense": {"name": defense, "arguments": arguments}, "stochastic": False},
        attack={"name": attack, "minimal_norm": attack == "carlini-wagner"},
        threat={"norm": "linf", "epsilon": RADIUS},
        details={"candidates": candidates, "substitute": {"fidelity": 0.9}},
    )
    kept = np.arange(IMAGES) < accuracy / 100 * IMAGES if right is None else right
    many = Figure(np.full(100_000, accuracy), np.arange(100_000), 100.0)  # so many that a hundredth of a point shows
    return SimpleNamespace(record=record, accuracy=many, clean_accuracy=99.0, examples=outcomes(kept))


class Run:
    """The cells of a run, found as `RunFindings` finds them."""

    def __init__(self, *cells, seeds=(0,), substitute=("malade2018/d",), classifier="malade2018/d", epsilon=(RADIUS,)):
        self.cells = cells
        names = [SimpleNamespace(name=name) for name in substitute]
        config = SimpleNamespace(
            seed=seeds, substitute=names, architecture=[SimpleNamespace(name=classifier)], epsilon=epsilon
        )
        self.plan = SimpleNamespace(config=config, data=SimpleNamespace(test=range(IMAGES)))

    def all(self, *, seed, defense, attack=None, epsilon=None, **_):
        return [
            one
            for one in self.cells
            if (one.record.seed, one.record.target["defense"]["name"]) == (seed, defense)
            and attack in (None, one.record.attack["name"])
            and epsilon in (None, one.record.threat["epsilon"])
        ]


def test_figures_are_told_apart_by_seed_and_by_arguments():
    cells = [
        cell(seed, defense="malade", attack="fgsm", candidates={}, accuracy=10.0 * seed + sigma, sigma=sigma)
        for seed in (0, 1)
        for sigma in (0.1, 0.3)
    ]
    run = Run(*cells, seeds=(0, 1))
    found = by_seed(run, lambda one: one.accuracy, {"sigma": 0.3}, defense="malade")
    assert tuple(found) == pytest.approx((0.3, 10.3))
    with pytest.raises(ValueError, match="Expected one cell with seed=0, defense=malade; got 2"):
        by_seed(run, lambda one: one.accuracy, defense="malade")


def test_the_papers_attack_the_adaptive_and_the_ignorant_one_stand_apart():
    found = cell(defense="malade", attack="fgsm", candidates={"faithful": 0.6, "bpda": 0.3, "base": 0.9}, accuracy=25.0)
    figures = (whitebox.through, whitebox.worst, whitebox.ignoring)
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
    assert whitebox.worst(found) == pytest.approx(40.0)


def test_a_defense_without_a_gradient_of_its_own_has_no_number_there():
    blind = cell(defense="malade", attack="fgsm", candidates={"faithful": None, "base": 0.9})
    assert math.isnan(whitebox.through(blind))


def white_box(accuracies: dict[str, float]) -> Run:
    """FGSM, R+FGSM and PGD on every defense of classifier D, PGD leaving the given accuracies."""
    return Run(
        *(
            cell(defense=name, attack=attack, candidates={"faithful": 1.0}, accuracy=left)
            for column, name in DEFENSES.items()
            for attack, left in (("fgsm", 99.0), ("r-fgsm", 98.0), ("pgd", accuracies.get(column, 97.5)))
        )
    )


def test_the_adaptive_attacker_takes_the_worst_attack_for_every_image():
    even = np.arange(IMAGES) % 2 == 0
    cells = [
        cell(defense="magnet", attack=name, candidates={}, right=right) for name, right in (("fgsm", even), ("pgd", ~even))
    ]
    assert whitebox._least_white_box(Findings({"D": Run(*cells)}, (0,)), "D", "magnet") == (0.0,)


def test_the_row_of_the_adaptive_attacks_has_the_smallest_of_their_figures():
    run = Run(
        *(
            cell(defense="magnet", attack=name, candidates={"faithful": left}, accuracy=100 * left)
            for name, left in (("fgsm", 0.1), ("pgd", 0.4), ("apgd-ce", 0.3))
        )
    )
    assert whitebox._smallest(run, "magnet", "adaptive", whitebox.through) == pytest.approx((30.0,))
    assert whitebox._smallest(run, "magnet", "FGSM", whitebox.through) == pytest.approx((10.0,))
    with pytest.raises(ValueError, match="Expected a cell of CW on magnet with seed=0; got none"):
        whitebox._smallest(run, "magnet", "CW", whitebox.through)


def test_a_line_says_what_the_adaptive_attack_breaks_and_by_how_much():
    findings = Findings({"D": white_box({"malade": 3.0})}, (0,))
    printed = table("table2")
    assert min(printed.cell("malade", attack, "D") for attack in ("FGSM", "R+FGSM")) == 94.74
    assert whitebox._broken(findings) == [
        "MALADE on D: the adaptive attack leaves 3.0% at radius 0.3 where the paper reports 94.7% under FGSM and R+FGSM, "
        "91.7 points less"
    ]
    (nothing,) = whitebox._broken(Findings({"D": white_box({})}, (0,)))
    assert "breaks nothing" in nothing


def test_the_headline_takes_the_least_of_black_box_and_adaptive_accuracy():
    black = Run(
        *(
            cell(defense=name, attack="fgsm", candidates={}, accuracy=left)
            for name, left in zip(DEFENSES.values(), (10.0, 60.0, 70.0, 20.0, 50.0), strict=True)
        )
    )
    assert substitutes(black) == ["substitute malade2018/d"]
    white = white_box({"malade": 65.0, "defense_gan": 40.0, "magnet": 55.0})
    claim = whitebox._headline(Findings({"D": white, "D, black-box": black}, (0,)), whitebox._STRONGEST)
    assert claim.parts[0].differences == pytest.approx((65.0 - 50.0,))
    assert claim.withheld is None


def gan_facts(clean: float, attacked: float) -> dict[str, float]:
    """What a qualification finds beside a bare net of 97% and a paper of 87.83%."""
    return {gan._CLEAN: clean, gan._BARE: 97.0, gan._ATTACKED: attacked, gan._PAPER: 87.83, gan._ERROR: 20.0}


def test_under_the_papers_attacks_cw_counts_and_pgd_does_not():
    """Black-box FGSM leaves 70, FGSM and R+FGSM all; MALADE has 60 under CW and MagNet 5, whose PGD would be 90."""
    black = Run(*(cell(defense=name, attack="fgsm", candidates={}, accuracy=70.0) for name in ("malade", "magnet")))
    names = {"malade": 0.6, "magnet": 0.05}
    near = Run(
        *(
            cell(defense=name, attack=attack, candidates={"faithful": 1.0}, accuracy=left)
            for name in names
            for attack, left in (("fgsm", 99.0), ("r-fgsm", 99.0), ("pgd", 1.0 if name == "malade" else 90.0))
        )
    )
    far = Run(*(cell(defense=name, attack="carlini-wagner", candidates={"faithful": s}) for name, s in names.items()))
    tuned = Tuned(gan_facts(90.0, 40.0), {})
    findings = Findings({"D": near, "D, CW": far, "D, black-box": black}, (0,), tuned=tuned)
    claim = whitebox._headline(findings, whitebox._PAPERS)
    assert claim.parts[0].differences == pytest.approx((60.0 - 5.0,))
    assert claim.withheld is not None
    assert claim.withheld.verdict == "not tested"
    assert whitebox._headline(findings, whitebox._STRONGEST).parts[0].differences == pytest.approx((1.0 - 70.0,))


SEEDS = (0, 1, 2)


def black_box(accuracies: dict[str, float], **settings) -> Run:
    """FGSM by substitute on every defense, with three seeds that agree."""
    cells = [
        cell(seed, defense=name, attack="fgsm", candidates={}, accuracy=accuracies.get(column, 50.0))
        for column, name in DEFENSES.items()
        for seed in SEEDS
    ]
    return Run(*cells, seeds=SEEDS, **settings)


def test_magnet_may_win_a_quarter_of_the_pairs_and_defense_gan_none():
    def claim(magnet: list[float], gan: float = 20.0):
        runs = {
            letter: black_box(
                {"malade": 70.0, "defense_gan": gan, "magnet": left}, classifier=CLASSIFIERS[letter], substitute=[one]
            )
            for letter, one, left in zip(
                "ABCD", ("malade2018/b", "malade2018/a", "malade2018/d", "malade2018/d"), magnet, strict=True
            )
        }
        (comparison,) = blackbox._pairs(Findings(runs, SEEDS))
        return next(one for one in comparison.claims if one.id == "malade2018.claim.blackbox")

    assert verdict(claim([60.0, 60.0, 60.0, 90.0])) == "holds"
    assert verdict(claim([60.0, 60.0, 90.0, 90.0])) == "fails"
    assert verdict(claim([60.0, 60.0, 60.0, 60.0], gan=80.0)) == "fails"


def test_a_substitute_without_held_out_images_has_no_fidelity():
    run = black_box({})
    for one in run.cells:
        one.record.details["substitute"]["fidelity"] = None
    assert all(math.isnan(share) for share in blackbox._fidelity(run, "substitute malade2018/d", "malade"))


def test_a_substitute_that_agrees_too_rarely_is_named():
    run = black_box({})
    for one in run.cells:
        if one.record.target["defense"]["name"] == "magnet":
            one.record.details["substitute"]["fidelity"] = 0.79
    (comparison,) = blackbox._pairs(Findings({"D": run}, SEEDS))
    assert "D/D: the black-box accuracies of MagNet are upper bounds" in comparison.notes


def test_defense_gan_qualifies_by_clean_and_by_the_papers_accuracy():
    assert gan.qualifies(gan_facts(95.0, 82.83))
    assert not gan.qualifies(gan_facts(94.9, 90.0))
    assert not gan.qualifies(gan_facts(97.0, 82.8))
    assert "94.9% clean where the bare net has 97.0%" in gan.told(gan_facts(94.9, 90.0))


@pytest.mark.parametrize(("magnet", "said"), [(60.0, "not tested"), (90.0, "fails")])
def test_without_a_qualified_defense_gan_the_claim_can_only_fail(magnet, said):
    run = black_box({"malade": 70.0, "magnet": magnet})
    run.cells = [one for one in run.cells if one.record.target["defense"]["name"] != "defense-gan"]
    tuned = Tuned(gan_facts(90.0, 40.0), {})
    (comparison,) = blackbox._pairs(Findings({"D": run}, SEEDS, tuned=tuned))
    claim = next(one for one in comparison.claims if one.id == "malade2018.claim.blackbox")
    (judged,) = judge_claims([claim], "small")
    assert judged.printed == said


def radii(malade: dict[float, float]) -> Run:
    cells = []
    for seed in SEEDS:
        for radius, left in malade.items():
            for name, accuracy in (("none", 98.0 if radius == 0.1 else 40.0), ("malade", left)):
                cells.append(cell(seed, defense=name, attack="fgsm", candidates={}, accuracy=accuracy))
                cells[-1].record.threat["epsilon"] = radius
    return Run(*cells, seeds=SEEDS, epsilon=tuple(malade))


@pytest.mark.parametrize(("malade", "said"), [({0.1: 98.0, 0.3: 96.0}, "holds"), ({0.1: 97.0, 0.3: 96.0}, "fails")])
def test_equal_accuracies_are_not_below_each_other(malade, said):
    (comparison,) = blackbox._radius(Findings({"radii": radii(malade)}, SEEDS))
    (claim,) = comparison.claims
    assert verdict(claim) == said
    assert [row[1][2].paper for row in comparison.rows] == [98.98, 97.18]


def test_the_sweep_of_training_noise_stands_beside_the_paper():
    cells = [
        cell(seed, defense="malade", attack="fgsm", candidates={}, accuracy=90.0 - 100 * abs(sigma - 0.3), sigma=sigma)
        for seed in SEEDS
        for sigma in (0.1, 0.3, 0.4)
    ]
    (comparison,) = sweeps._sigma(Findings({"sigmas": Run(*cells, seeds=SEEDS)}, SEEDS))
    assert [(label, pairs[0].paper) for label, pairs in comparison.rows] == [("0.1", 91.98), ("0.3", 97.18), ("0.4", 96.3)]
    assert [pairs[0].ours.centre for _, pairs in comparison.rows] == pytest.approx([70.0, 90.0, 80.0])
    assert verdict(comparison.claims[0]) == "holds"
    assert [series.x for series in comparison.plots[0].series] == [(0.1, 0.3, 0.4)] * 2


def test_ways_of_falling_are_compared_with_the_papers():
    chosen = SEARCH.untuned
    cells = [
        cell(seed, defense="malade", attack="fgsm", candidates={}, accuracy=left, **schedule(chosen, "malade", "D", family))
        for seed in SEEDS
        for left, family in zip((60.0, 70.0, 80.0), FAMILIES, strict=True)
    ]
    (fall,) = sweeps._schedules(Findings({"schedules": Run(*cells, seeds=SEEDS)}, SEEDS))
    assert [label for label, _ in fall.rows] == list(FAMILIES)
    assert [pair.ours.centre for pair in fall.rows[2][1]] == pytest.approx([99.0, 80.0, 10.0, 1.0, 0.05, 0.9])
    assert verdict(fall.claims[0]) == "holds"


def test_a_classifier_without_a_schedule_of_its_own_has_that_of_d():
    chosen = {**SEARCH.untuned, **{chosen_key("mala", "B", OFFSET, name): 3.0 for name in Schedule(1, 0, 1, 1).settings}}
    assert schedule(chosen, "mala", "C") == schedule(chosen, "mala", "D")
    assert schedule(chosen, "mala", "B") == {**dict.fromkeys(schedule(chosen, "mala", "D"), 3.0), "steps": 3}


def test_relaxed_images_are_shown_by_whether_they_were_restored():
    clean = torch.zeros(3, 1, 2, 2)
    states = torch.stack([clean + height for height in (1.0, 0.5, 0.25)])
    way = Way(clean, states, torch.arange(3), torch.tensor([True, True, False]), torch.tensor([True, False, True]))
    torch.testing.assert_close(relaxation._distance(way), torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64))
    restored, failed = relaxation.grids(way, "MALA")
    assert restored.rows == ("class 0",)
    assert failed.rows == ("class 1",)
    assert restored.columns == ("clean", "step 0", "step 1", "step 2")


def test_side_by_side_stands_the_image_that_only_the_last_defense_restores():
    clean = torch.zeros(3, 1, 2, 2)
    states = torch.stack([clean, clean])
    label, fooled = torch.arange(3), torch.tensor([True, True, False])
    mala = Way(clean, states, label, fooled, torch.tensor([True, False, True]))
    malade = Way(clean, states, label, fooled, torch.tensor([True, True, True]))
    grid = relaxation._side_by_side({"mala": mala, "malade": malade})
    assert grid.rows == ("MALA", "MALADE")
    assert grid.columns == ("clean", "step 0", "last step")
    assert grid.caption == "An adversarial image of class 1: MALA does not restore it, MALADE restores it"


def test_mala_and_malade_are_compared_on_every_source_and_under_either_schedule(monkeypatch):
    """MALADE is 5 points above MALA under MALA's schedule and 2 under its own, which adds 10 to both."""

    def on(_, name, settings, source):
        gain = {"mala": {True: 0.0, False: 10.0}, "malade": {True: 5.0, False: 12.0}}
        mine = settings["steps"] == 4
        assert name == ("own" if (settings["name"] == "mala") == mine else "swapped")
        return SeedFigure([gain[settings["name"]][mine] + shared._SOURCES.index(source)] * 3)

    monkeypatch.setattr(shared, "_on", on)
    chosen = {**SEARCH.untuned, chosen_key("mala", "D", OFFSET, "steps"): 4.0}
    found = shared._side_by_side(Findings({}, SEEDS), chosen)
    assert [label for label, _ in found.rows] == [
        "MALA, schedule of MALA",
        "MALA, schedule of MALADE",
        "MALADE, schedule of MALA",
        "MALADE, schedule of MALADE",
    ]
    beats, term = found.claims
    assert [part.differences[0] for part in beats.parts] == [12.0] * 3
    assert [part.differences[0] for part in beats.attributable] == [5.0] * 3
    assert [part.differences[0] for part in term.parts] == [2.0] * 3


def test_the_reconstruction_error_is_the_squared_distance_by_image():
    class Black(torch.nn.Module):
        def forward(self, x, rng):
            return torch.zeros_like(x)

    net = torch.nn.Flatten()
    defended = purified(Defended(net, False, {"faithful": Surrogate(net)}), Black(), stochastic=True)
    split = Split.of(torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.int64))
    assert gan.reconstruction_error(defended, split, 0) == pytest.approx(4 * 0.25)
    with pytest.raises(TypeError, match="Expected a model behind a generator, got Flatten"):
        gan.reconstruction_error(Defended(net), split, 0)
