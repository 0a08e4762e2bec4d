"""What every registered attack has to do in every norm that it knows; a new one is tested the moment it is registered."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks import ATTACKS, balls
from advbench.attacks.access import DecisionBased, ScoreBased, WhiteBox
from advbench.attacks.calibration import HeldOut, calibrate
from advbench.attacks.losses import margin
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import NORMS, Targeted, ThreatModel, Untargeted
from advbench.attacks.transfer import for_transfer

EPSILON = {"linf": 0.1, "l2": 0.7, "l1": 3.0, "l0": 5.0, "none": None}
SHAPE = (3, 6, 6)

SHORTER: dict[str, int] = {
    "steps": 6,
    "queries": 40,
    "restarts": 2,
    "points": 3,
    "search_steps": 3,
    "draws": 2,
    "targets": 3,
}
"""Numbers of iterations, by the name of their field, cut down so that the contract runs in seconds."""

MEMBERS = ("pgd(steps=4)", "fab-t(steps=3,targets=2)", "square(queries=20)")
"""The attacks of an ensemble that takes a list."""


GIVEN: dict[str, dict[str, Any]] = {"lbfgs": {"c": 0.5}}
"""Values that are else found on held-out images."""


def factory(name: str) -> Any:
    module, _, attribute = ATTACKS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


@functools.cache
def shortened(name: str) -> Any:
    attack = factory(name)()
    fields = {field.name for field in dataclasses.fields(attack)}
    cut = {field: min(value, getattr(attack, field)) for field, value in SHORTER.items() if field in fields}
    short = dataclasses.replace(
        attack, **cut, **GIVEN.get(name, {}), **({"attacks": MEMBERS} if "attacks" in fields else {})
    )
    return calibrate(short, held_out())


def held_out() -> HeldOut:
    """Images that are not those of the tests, for attacks with values to find."""
    model, x = Net().double(), images(24, torch.float64).flip(2, 3)
    return HeldOut(x=x, y=labels(model, x), index=torch.arange(24), threat=ThreatModel("linf", 0.1), model=model)


CELLS = [(name, norm) for name in ATTACKS for norm in sorted(factory(name)().norms)]
every_attack = pytest.mark.parametrize("name", list(ATTACKS))
every_cell = pytest.mark.parametrize(("name", "norm"), CELLS)


class Net(nn.Module):
    """A small network with every kind of state: batch normalisation, dropout, buffers."""

    def __init__(self, classes: int = 4, noise: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Tanh(), nn.Dropout(0.5), nn.Flatten())
        self.head = nn.Linear(96, classes)
        for parameter in self.parameters():
            parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator)
        self.noise, self.asked, self.fails_after = noise, 0, 10**9

    def forward(self, x: Tensor, rng: ExampleRNG | None = None) -> Tensor:
        self.asked += len(x)
        if self.asked > self.fails_after:
            raise OverflowError("the model broke")
        if rng is not None:
            x = x + 0.05 * rng.normal(tuple(x.shape[1:]), x.dtype)
        return self.head(self.features(x))


def images(n: int = 9, dtype: torch.dtype = torch.float32) -> Tensor:
    """Images with many pixels at exactly 0 and 1."""
    x = torch.rand(n, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return (1.6 * x - 0.3).clamp(0, 1).to(dtype)


def labels(model: nn.Module, x: Tensor, wrong: tuple[int, ...] = (1, 4)) -> Tensor:
    """The model's own labels, but for some examples that it gets wrong."""
    model.eval()
    with torch.no_grad():
        logits = model(x)
    y = logits.argmax(dim=1)
    for row in wrong:
        y[row : row + 1] = (y[row : row + 1] + 1) % logits.shape[1]
    model.train()
    model.asked = 0
    return y


def threat_of(attack: Any, norm: str, box: tuple[float, float] | None = (0.0, 1.0)) -> ThreatModel:
    return ThreatModel(norm, None if attack.minimal_norm else EPSILON[norm], box)


def run(
    attack: Any,
    model: nn.Module,
    x: Tensor,
    goal: Untargeted | Targeted,
    threat: ThreatModel,
    *,
    seed: int = 0,
    index: Tensor | None = None,
    **arguments: Any,
) -> Tensor:
    rng = ExampleRNG.make(seed, "attack", torch.arange(len(x)) if index is None else index)
    with attack.knowledge(model, rng.fork("model"), **arguments) as access:
        return attack(access, x, goal, threat, rng.fork("attack"))


def setting(name: str, norm: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Net, Tensor, Untargeted, ThreatModel]:
    attack, model, x = shortened(name), Net().to(dtype), images(dtype=dtype)
    return attack, model, x, Untargeted(labels(model, x)), threat_of(attack, norm)


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
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_stay_in_ball_and_box_with_shape_and_dtype(name, norm, dtype):
    attack, model, x, goal, threat = setting(name, norm, dtype)
    x_adv = run(attack, model, x, goal, threat)
    assert x_adv.shape == x.shape
    assert x_adv.dtype == dtype
    assert not x_adv.requires_grad
    assert not balls.violations(x_adv, x, threat, tolerance=1e-6).any()
    assert ((x_adv >= 0) & (x_adv <= 1)).all()


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
    attack, model, x, goal, threat = setting(name, norm)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = run(attack, model, x, goal, threat)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(run(attack, model, x, goal, threat), first)


@every_cell
def test_batches_and_order_do_not_matter(name, norm):
    attack, model, x, goal, threat = setting(name, norm, torch.float64)
    expected = run(attack, model, x, goal, threat)
    order = torch.tensor([3, 8, 0, 5, 1, 7, 2, 6, 4])
    for parts in ([order], order.split(1), order.split(7)):
        for rows in parts:
            found = run(attack, model, x[rows], goal.select(rows), threat, index=rows)
            torch.testing.assert_close(found, expected[rows], rtol=0, atol=1e-7)
            with torch.no_grad():
                model.eval()
                assert torch.equal(
                    goal.select(rows).achieved(model(found)), goal.select(rows).achieved(model(expected[rows]))
                )
                model.train()


def fingerprint(model: Net) -> tuple[Any, ...]:
    tensors = [value.clone() for value in model.state_dict().values()]
    modes = [module.training for module in model.modules()]
    gradients = [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    return modes, gradients, tensors


def assert_untouched(model: Net, before: tuple[Any, ...]) -> None:
    after = fingerprint(model)
    assert after[:2] == before[:2]
    assert all(torch.equal(one, other) for one, other in zip(after[2], before[2], strict=True))


@every_cell
def test_model_and_images_are_left_as_they_were(name, norm):
    attack, model, x, goal, threat = setting(name, norm)
    model.features[1].eval()
    before, clean, y = fingerprint(model), x.clone(), goal.y.clone()
    x_adv = run(attack, model, x, goal, threat)
    assert_untouched(model, before)
    assert torch.equal(x, clean)
    assert torch.equal(goal.y, y)
    assert x_adv.data_ptr() != x.data_ptr()
    for asked in (1, 2 * len(x)):  # the model breaks at once, or on the way
        model.asked, model.fails_after = 0, asked
        try:
            run(attack, model, x, goal, threat)
        except OverflowError:
            pass
        else:
            assert model.asked <= asked, "an attack swallowed the model's exception"
        assert_untouched(model, before)
        assert torch.equal(x, clean)


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
@pytest.mark.parametrize("classes", [2, 3, 5, 100])
def test_any_number_of_classes_will_do(name, norm, classes):
    attack, x = shortened(name), images(4)
    model = Net(classes)
    threat = threat_of(attack, norm)
    x_adv = run(attack, model, x, Untargeted(labels(model, x, wrong=(1,))), threat)
    assert not balls.violations(x_adv, x, threat).any()


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
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0 * x.flatten(1)[:, :3] + torch.tensor([1.0, 0.0, 0.0])

    class Saturated(Net):
        def forward(self, x: Tensor, rng: ExampleRNG | None = None) -> Tensor:
            return 1e6 * super().forward(x) - 1e7

    attack, x = shortened(name), images(4)
    threat = threat_of(attack, norm)
    for model in (Flat(), Saturated()):
        x_adv = run(attack, model, x, Untargeted(torch.zeros(4, dtype=torch.int64)), threat)
        assert not balls.violations(x_adv, x, threat).any()


@every_cell
def test_stochastic_models_are_attacked_repeatably(name, norm):
    attack, _, x, goal, threat = setting(name, norm)
    model = Net(noise=True)
    with torch.no_grad():
        first, second, other = (
            run(attack, model, x, goal, threat, seed=seed, stochastic=True, draws=2) for seed in (0, 0, 1)
        )
    assert torch.equal(first, second)
    assert not balls.violations(first, x, threat).any()
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
