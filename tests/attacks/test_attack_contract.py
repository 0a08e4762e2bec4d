"""What every registered attack has to do in every norm that it knows; a new one is tested the moment it is registered."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from advbench import conformance
from advbench.attacks import ATTACKS, balls
from advbench.attacks.access import DecisionBased, ScoreBased, WhiteBox
from advbench.attacks.losses import margin
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import NORMS, Targeted, ThreatModel, Untargeted
from advbench.attacks.transfer import for_transfer
from advbench.conformance import CHECKS, EPSILON, Inapplicable, Net, images, labels, run, threat_of
from advbench.registry.specs import Spec


def factory(name: str) -> Any:
    module, _, attribute = ATTACKS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


@functools.cache
def shortened(name: str) -> Any:
    return conformance.shortened(Spec(name))


CELLS = [(name, norm) for name in ATTACKS for norm in sorted(factory(name)().norms)]
every_attack = pytest.mark.parametrize("name", list(ATTACKS))
every_cell = pytest.mark.parametrize(("name", "norm"), CELLS)


def holds(check: str, name: str, norm: str) -> None:
    """A check of `advbench conformance`, which runs them on other people's attacks too."""
    try:
        CHECKS[check](shortened(name), norm)
    except Inapplicable as reason:
        pytest.skip(str(reason))


def setting(name: str, norm: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Net, Tensor, Untargeted, ThreatModel]:
    attack, model, x = shortened(name), Net().to(dtype), images(dtype=dtype)
    return attack, model, x, Untargeted(labels(model, x)), threat_of(attack, norm)


@every_cell
def test_it_returns_nothing_clearly_worse_than_what_it_asked_about(name: str, norm: str) -> None:
    holds("bookkeeping", name, norm)


@every_attack
def test_an_attack_says_what_it_is(name):
    attack = factory(name)()
    assert attack.norms <= frozenset(NORMS)
    assert attack.norms
    assert attack.knowledge in (WhiteBox, ScoreBased, DecisionBased)
    assert isinstance(attack.minimal_norm, bool)
    assert isinstance(attack.targeted, bool)
    assert dataclasses.is_dataclass(attack)
    hash(attack)
    first = (factory(name).__doc__ or "").partition("\n")[0]
    assert first.endswith(".")
    assert "arXiv:" in first or "(" in first, "the first line names the paper"


@every_cell
@pytest.mark.parametrize("check", ["box", "dtype"])
def test_images_stay_in_ball_and_box_with_shape_and_dtype(name, norm, check):
    holds(check, name, norm)


@every_cell
def test_an_epsilon_does_not_disturb_a_minimal_norm_attack(name, norm):
    attack, model, x, goal, _ = setting(name, norm)
    if not attack.minimal_norm:
        pytest.skip("epsilon binds")
    x_adv = run(attack, model, x, goal, ThreatModel(norm, EPSILON[norm]))
    assert not balls.violations(x_adv, x, ThreatModel(norm, None)).any()


@every_cell
def test_without_a_box_only_the_ball_binds(name, norm):
    attack, model, x, goal, _ = setting(name, norm)
    threat = threat_of(attack, norm, box=None)
    assert not balls.violations(run(attack, model, x, goal, threat), x, threat).any()


@every_cell
def test_a_seed_repeats_and_the_global_random_state_does_not_matter(name, norm):
    holds("seeds", name, norm)


@every_cell
def test_batches_and_order_do_not_matter(name, norm):
    assert conformance._precision(shortened(name), norm) == torch.float64
    holds("batches", name, norm)


@every_cell
def test_model_and_images_are_left_as_they_were(name, norm):
    holds("model untouched", name, norm)


@every_cell
def test_every_pass_is_counted(name, norm):
    attack, model, x, goal, threat = setting(name, norm)
    rng = ExampleRNG.make(0, "attack", torch.arange(len(x)))
    with attack.knowledge(model, rng) as access:
        attack(access, x, goal, threat, rng)
    assert access.ledger.forwards.sum() == model.asked
    if attack.knowledge is not WhiteBox:
        assert torch.equal(access.ledger.queries, access.ledger.forwards)
        assert not access.ledger.backwards.any()


@every_cell
def test_any_number_of_classes_will_do(name, norm):
    holds("classes", name, norm)


@every_cell
@pytest.mark.parametrize("check", ["shifted logits", "pixels at 0 and 1"])
def test_what_should_make_no_difference_makes_none(name, norm, check):
    holds(check, name, norm)


@every_cell
def test_no_examples_and_a_single_one(name, norm):
    attack, model, x, goal, threat = setting(name, norm)
    for rows in (torch.arange(0), torch.tensor([2]), torch.tensor([1])):
        x_adv = run(attack, model, x[rows], goal.select(rows), threat, index=rows)
        assert x_adv.shape == x[rows].shape
        assert x_adv.dtype == x.dtype


@every_cell
def test_targets_are_taken_or_refused(name, norm):
    attack, model, x, goal, threat = setting(name, norm)
    goal = Targeted(goal.y, (goal.y + 1) % 4)
    if not attack.targeted:
        with pytest.raises(ValueError, match="targeted"):
            run(attack, model, x, goal, threat)
        return
    x_adv = run(attack, model, x, goal, threat)
    assert not balls.violations(x_adv, x, threat).any()
    if attack.knowledge is WhiteBox and not attack.minimal_norm:
        with torch.no_grad():
            model.eval()
            gained = margin(model(x_adv), goal) - margin(model(x), goal)
        assert gained.mean() > 0, "the attack moves away from its target"


@every_cell
def test_it_does_more_than_nothing(name, norm):
    """Fewer of the clean-correct examples stay correct, or, where the short run broke none, their margin shrank."""
    attack, model, x, goal, threat = setting(name, norm)
    if attack.knowledge is not WhiteBox:
        pytest.skip("too few queries here; the attack's own test measures its strength")
    x_adv = run(attack, model, x, goal, threat)
    model.eval()
    with torch.no_grad():
        clean, attacked = margin(model(x), goal), margin(model(x_adv), goal)
    right = clean < 0
    assert (attacked[right] > 0).any() or (attacked - clean)[right].mean() > 0


@every_cell
def test_a_flat_and_a_saturated_model_do_no_harm(name, norm):
    holds("zero gradient", name, norm)


@every_cell
def test_stochastic_models_are_attacked_repeatably(name, norm):
    holds("stochastic model", name, norm)
    attack, model, x, goal, threat = setting(name, norm)
    other = run(attack, model, x, goal, threat, seed=1, stochastic=True, draws=2)
    assert not balls.violations(other, x, threat).any()


@every_cell
def test_crafts_for_transfer_move_every_example_and_spend_the_budget(name, norm):
    attack, model, x, goal, _ = setting(name, norm)
    if EPSILON[norm] is None:
        pytest.skip("no budget to spend")
    threat = ThreatModel(norm, EPSILON[norm])
    x_adv = run(for_transfer(attack), model, x, goal, threat)
    assert not balls.violations(x_adv, x, threat).any()
    moved = balls.distance(x_adv - x, "linf") > 0
    if attack.knowledge is WhiteBox:
        assert moved.all(), "an example came back as it was, so it cannot transfer"


@every_attack
def test_threats_that_it_does_not_know_are_refused(name):
    attack, model, x = shortened(name), Net(), images(2)
    goal = Untargeted(labels(model, x, wrong=()))
    for norm in NORMS:
        if norm not in attack.norms:
            with pytest.raises(ValueError, match="Expected a threat in"):
                run(attack, model, x, goal, ThreatModel(norm, 0.5))
        elif norm != "none" and not attack.minimal_norm:
            with pytest.raises(ValueError, match="epsilon"):
                run(attack, model, x, goal, ThreatModel(norm, None))
