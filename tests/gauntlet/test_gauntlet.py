"""The core of the gauntlet: ours beside the references on three models of the choosing half, 40 images each.

The references are the stored ones where the weights are those of the file; a machine whose training gives other weights runs
the peers itself, and skips where they are not installed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from advbench.attacks.apgd import APGD, APGDT
from advbench.attacks.auto import Auto
from advbench.attacks.autoattack import AutoAttack
from advbench.attacks.ddn import DDN
from advbench.attacks.deepfool import DeepFool
from advbench.attacks.fab import FAB
from advbench.attacks.fmn import FMN
from advbench.attacks.threat import Norm
from tests.gauntlet.models import MODELS, THIRD_LOT_SEED, Recipe, third_lot
from tests.gauntlet.networks import NETWORKS, InBlocks
from tests.gauntlet.pairs import PAIRS
from tests.gauntlet.references import Book, Outcome, fill, load
from tests.gauntlet.table import Row, markdown, pooled, rows_of
from tests.gauntlet.training import Problem, problem

IMAGES = 40
CORE: dict[str, Norm] = {"large-logits": "l2", "saturating": "l2", "quantised": "linf"}
"""Logits that saturate, units that saturate, and a straight-through gradient, each in one norm."""
MINIMAL = ("ddn", "fmn", "deepfool", "fab")
FIXED = ("pgd", "apgd-ce", "apgd-t")

LUCK = 2
"""So many of the 120 images may be lost, net of those gained, as starts are random."""

Faced = tuple[Problem, Book, Norm]


@pytest.fixture(scope="module")
def core(data_dir: Path) -> list[Faced]:
    """The models of the core, their first images, and references of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVBENCH_DATA", str(data_dir))
        wholes = [problem(MODELS[name]) for name in CORE]
    return [referenced(whole) for whole in wholes]


def referenced(whole: Problem) -> Faced:
    """The first images, with the stored references of them, or fresh ones where the weights differ."""
    norm = CORE[whole.recipe.name]
    few = Problem(whole.recipe, whole.model, whole.weights, whole.x[:IMAGES], whole.y[:IMAGES], whole.index[:IMAGES])
    known = load().get(whole.recipe.name)
    if known and known.weights == whole.weights and known.index == whole.index.tolist():
        outcomes = {
            key: Outcome(found.distances[:IMAGES], found.forwards, found.backwards, found.seconds, found.refused)
            for key, found in known.outcomes.items()
        }
        return few, Book(known.weights, known.index[:IMAGES], known.radii, outcomes), norm
    for peer in ("foolbox", "adv_lib", "pyautoattack"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip(peer, reason="other weights than those of references.npz, and a peer is not installed")
    book = Book(whole.weights, few.index.tolist())
    for attack in (*MINIMAL, *FIXED):
        if norm in PAIRS[attack].norms:
            fill(few, book, norm, attack)
    return few, book, norm


def beside(core: list[Faced], attack: str) -> list[Row]:
    """Ours beside the references on all models of the core."""
    return [row for few, book, norm in core if norm in PAIRS[attack].norms for row in rows_of(few, book, attack, norm)]


def weaker(rows: list[Row]) -> bool:
    """Whether a bar is missed on a model, or over all of them."""
    lost = sum(row.lost - row.gained for row in rows if row.epsilon is not None)
    return any(row.loses for row in rows) or lost > LUCK


@pytest.mark.parametrize("attack", [*MINIMAL, *FIXED])
def test_no_weaker_than_its_namesake(core: list[Faced], attack: str) -> None:
    rows = beside(core, attack)
    assert len(rows) >= 2
    assert not weaker(rows), markdown(rows)


WEAKENED: dict[str, Callable[[Norm, int], object]] = {
    "ddn": lambda norm, queries: DDN(steps=3),
    "fmn": lambda norm, queries: FMN(steps=3),
    "deepfool": lambda norm, queries: DeepFool(steps=1),
    "fab": lambda norm, queries: FAB(steps=1),
    "apgd-ce": lambda norm, queries: APGD(steps=1),
    "apgd-t": lambda norm, queries: APGDT(steps=1),
}


@pytest.mark.parametrize("attack", WEAKENED)
def test_a_weakened_attack_is_noticed(monkeypatch: pytest.MonkeyPatch, core: list[Faced], attack: str) -> None:
    monkeypatch.setitem(PAIRS, attack, replace(PAIRS[attack], ours=WEAKENED[attack]))
    assert weaker(beside(core, attack))


def outcome(*distances: float) -> Outcome:
    return Outcome(torch.tensor(distances), 1.0, 1.0, 0.0, 0)


def row(epsilon: float | None, ours: Outcome, theirs: Outcome) -> Row:
    return Row("model", "l2", epsilon, "attack", "library", ours, theirs)


INF = float("inf")


def test_the_bar_of_distances() -> None:
    theirs = outcome(1.0, 1.0, 1.0, INF)
    assert not row(None, outcome(1.02, 1.02, 1.02, INF), theirs).loses
    assert row(None, outcome(1.03, 1.03, 1.03, 1.03), theirs).loses
    assert row(None, outcome(0.1, 0.1, INF, INF), theirs).loses, "fewer images broken"
    assert not row(None, outcome(INF, INF), outcome(INF, INF)).loses


def test_the_bar_of_a_radius_is_mcnemars() -> None:
    theirs = outcome(*[1.0] * 7, INF)
    assert row(1.0, outcome(*[INF] * 8), theirs).loses, "7 of 7 lost: 1 in 128"
    assert not row(1.0, outcome(1.0, *[INF] * 7), theirs).loses, "6 of 6 lost: 1 in 64"
    assert (row(1.0, outcome(1.0, *[INF] * 7), theirs).p_value, row(1.0, theirs, theirs).p_value) == (1 / 64, 1.0)
    assert pooled([row(1.0, outcome(*[INF] * 8), theirs)])[0][-1] == "LOSES"


def test_the_pooled_bar_counts_images() -> None:
    """One image of 500 is 0.2 points, the bar itself, which rounded shares must not turn into more."""
    theirs = outcome(*[1.0] * 129, *[INF] * 371)
    assert pooled([row(1.0, outcome(*[1.0] * 128, *[INF] * 372), theirs)])[0][-2:] == ("+0.20", "")
    assert pooled([row(1.0, outcome(*[1.0] * 127, *[INF] * 373), theirs)])[0][-2:] == ("+0.40", "LOSES")


def test_the_split_is_eight_and_twelve_and_no_network_is_on_both_sides() -> None:
    halves = {half: [recipe for recipe in MODELS.values() if recipe.half == half] for half in ("choosing", "judging")}
    assert {half: len(recipes) for half, recipes in halves.items()} == {"choosing": 8, "judging": 12}
    assert len({recipe.seed for recipe in MODELS.values()}) == 20

    def mechanisms(recipes: list[Recipe]) -> set[str]:
        special = {recipe.network for recipe in recipes} | {recipe.training for recipe in recipes}
        return special - {"strided", "pooled", "lenet", "plain"}

    assert not mechanisms(halves["choosing"]) & mechanisms(halves["judging"])


def test_the_third_lot_is_drawn_from_its_seed() -> None:
    assert third_lot() == third_lot(THIRD_LOT_SEED)
    assert third_lot() != third_lot(THIRD_LOT_SEED + 1)
    assert len({recipe.seed for recipe in third_lot()}) == 4
    assert third_lot()[0].name not in MODELS
    assert all(len(recipe.radii) == 2 and set(recipe.radii.values()) == {None} for recipe in third_lot())


@pytest.mark.parametrize("recipe", [*MODELS.values(), *third_lot()], ids=lambda recipe: recipe.name)
def test_networks_answer_with_gradients(recipe: Recipe) -> None:
    side = 14 if recipe.halved else 28
    shape = (3, 16, 16) if recipe.task in ("cifar", "kinds") else (1, side, 2 * side if recipe.task == "pairs" else side)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = NETWORKS[recipe.network](shape, 7, recipe.units).eval()
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = model(x)
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), x)
    assert logits.shape == (2, 7)
    assert (gradient != 0).flatten(1).any(dim=1).all()
    torch.testing.assert_close(model(x[1:]), logits[1:])


def test_in_blocks_a_network_answers_the_same() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = NETWORKS["lenet"]((1, 28, 28), 10, "relu").eval()
    x = torch.rand(70, 1, 28, 28, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits, (gradient,) = body(x), torch.autograd.grad(body(x)[:, 3].sum(), x)
    found = InBlocks(body, size=64)(x)
    torch.testing.assert_close(found, logits)
    torch.testing.assert_close(torch.autograd.grad(found[:, 3].sum(), x)[0], gradient)


def test_every_registered_attack_with_a_namesake_runs() -> None:
    made = {type(pair.ours("l2", 100)) for pair in PAIRS.values()}
    assert {AutoAttack, Auto, APGD, APGDT, DDN, FMN, DeepFool, FAB} <= made
