"""Structured gradient regularisation and the gradient norm: closed forms on a softmax layer, and one training's state."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks.threat import ThreatModel
from advbench.defenses.kernels.covariance import autocorrelation, exponential, radial
from advbench.defenses.kernels.covariance_operator import operator_of, quadratic_form, unit_diagonal
from advbench.defenses.training.ascent import ascend
from advbench.defenses.training.gradient_norm import GradientNorm
from advbench.defenses.training.linearised import linearise
from advbench.defenses.training.structured_gradient import SGR, SGRFGSM, SGRPGD, SGRCorrelated, SGRData
from advbench.defenses.training.trained import stream
from advbench.zoo.data import Split
from advbench.zoo.training import Budget, Step

SHAPE = (2, 3, 4)
D, CLASSES = 24, 5


def step(n: int, *, training: bool = True, iteration: int = 0) -> Step:
    return Step(0, 0, iteration, torch.arange(n), training)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def softmax_layer() -> tuple[nn.Linear, nn.Module]:
    layer = nn.Linear(D, CLASSES).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(CLASSES, D, generator=generator(1)))
    return layer, nn.Sequential(nn.Flatten(), layer)


def batch(n: int = 6, seed: int = 2) -> tuple[Tensor, Tensor]:
    return torch.rand(n, *SHAPE, generator=generator(seed), dtype=torch.float64), torch.arange(n) % CLASSES


def split(n: int = 6) -> Split:
    """Images in float64, in which no data set is."""
    x, y = batch(n)
    return dataclasses.replace(Split.of(x.float(), y), x=x)


def gradients(layer: nn.Linear, x: Tensor, y: Tensor) -> Tensor:
    """By hand: of a softmax layer's cross-entropy, p - e_y pulled back through the weights; shape (n, d)."""
    logits = x.flatten(1) @ layer.weight.T + layer.bias
    return (logits.softmax(dim=1) - nn.functional.one_hot(y, CLASSES)) @ layer.weight


def moments(xi: Tensor) -> Tensor:
    """Raw second moments of unit mean diagonal, (d, d)."""
    second = xi.flatten(1).T @ xi.flatten(1) / len(xi)
    return second / second.diagonal().mean()


def form(second: Tensor, g: Tensor) -> Tensor:
    return torch.einsum("ni,ij,nj->n", g, second, g)


def same(ours: Tensor, closed: Tensor, layer: nn.Linear) -> None:
    """The same value and the same gradient in the weights."""
    torch.testing.assert_close(ours, closed)
    parameters = (layer.weight, layer.bias)
    found, expected = (torch.autograd.grad(loss, parameters, retain_graph=True) for loss in (ours, closed))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_the_gradient_norm_of_a_softmax_layer():
    layer, model = softmax_layer()
    x, y = batch()
    terms = GradientNorm(coefficient=0.3).objective(model, x, y, step(6))
    expected = nn.functional.cross_entropy(model(x), y)
    same(terms["cross_entropy"], expected, layer)
    same(terms["gradient_norm"], 0.15 * gradients(layer, x, y).square().sum(dim=1).mean(), layer)


@pytest.mark.parametrize("perturbation", ["gradient", "sign"])
def test_the_penalty_of_a_softmax_layer_under_the_full_matrix(perturbation):
    layer, model = softmax_layer()
    x, y = batch()
    terms = SGR(coefficient=0.3, form="matrix", perturbation=perturbation).start(split())(model, x, y, step(6))
    g = gradients(layer, x, y)
    xi = g.detach() if perturbation == "gradient" else g.detach().sign()
    same(terms["structured_gradient"], 0.15 * form(moments(xi), g).mean(), layer)


def test_the_penalty_is_the_spread_of_the_logits_gradients():
    """Roth et al. 2018: half the mean of (grad z_y - m)^T S (grad z_y - m), m the softmax-weighted mean of grad z."""
    layer, model = softmax_layer()
    x, y = batch()
    penalty = SGR(coefficient=1.0, form="matrix").start(split())(model, x, y, step(6))["structured_gradient"]
    mean = model(x).softmax(dim=1) @ layer.weight  # grad z_k is the weight row w_k, whatever the image
    spread = layer.weight[y] - mean
    same(penalty, form(moments(gradients(layer, x, y).detach().sign()), spread).mean() / 2, layer)


def test_the_logit_identity_holds_beyond_one_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(D, 7), nn.Tanh(), nn.Linear(7, CLASSES)).double()
    x, y = batch()
    penalty = SGR(coefficient=1.0, form="matrix", perturbation="gradient").start(split())(model, x, y, step(6))
    jacobian = torch.stack([torch.func.jacrev(lambda one: model(one.unsqueeze(0))[0])(one).flatten(1) for one in x])
    mean = torch.einsum("nk,nkd->nd", model(x).softmax(dim=1), jacobian)
    spread = jacobian[torch.arange(6), y] - mean
    expected = form(moments(spread), spread).mean() / 2  # the perturbations are these gradients, up to their sign
    torch.testing.assert_close(penalty["structured_gradient"], expected)


@pytest.mark.parametrize("form_name", ["radial", "displacement"])
def test_the_penalty_under_a_covariance_function(form_name):
    layer, model = softmax_layer()
    x, y = batch()
    terms = SGR(coefficient=0.3, form=form_name, perturbation="gradient").start(split())(model, x, y, step(6))
    g = gradients(layer, x, y).view(-1, *SHAPE)
    function = autocorrelation(g.detach())
    operator = unit_diagonal(operator_of(radial(function) if form_name == "radial" else function))
    same(terms["structured_gradient"], 0.15 * quadratic_form(operator, g).mean(), layer)


def test_white_perturbations_make_the_penalty_a_gradient_norm():
    """In all three forms: a covariance function of white noise is the identity but for sampling error."""
    layer, model = softmax_layer()
    x, y = batch()
    g = gradients(layer, x, y)
    norm = 0.15 * g.square().sum(dim=1).mean()
    white = torch.randn(4000, *SHAPE, generator=generator(3), dtype=torch.float64)
    for form_name in ("radial", "displacement", "matrix"):
        objective = SGRData(coefficient=0.3, form=form_name).start(dataclasses.replace(split(4000), x=white))
        penalty = objective(model, x, y, step(6))["structured_gradient"]
        assert float((penalty / norm).detach()) == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize(("make", "steps", "start"), [(SGRFGSM, 1, False), (SGRPGD, 10, True)])
def test_the_perturbations_of_an_ascent_climb_the_predicted_label(make, steps, start):
    _, model = softmax_layer()
    x, y = batch()
    xi = make(epsilon=0.1).perturbations(model, x, step(6))
    label, size = model(x).argmax(dim=1), 1.0 if steps == 1 else 0.25
    threat = ThreatModel("linf", 0.1)
    x_adv = ascend(model, x, label, threat, steps=steps, step_size=size, random_start=start, rng=stream(step(6)))
    assert torch.equal(xi, x_adv - x)
    assert (label != y).any()  # where the label that is climbed matters
    assert float(xi.abs().max()) == pytest.approx(0.1)


def test_the_covariance_moves_while_training_and_stays_in_validation():
    _, model = softmax_layer()
    objective = SGR(form="matrix", beta=0.5).start(split())
    for seed in (2, 3):
        objective(model, *batch(seed=seed), step(6))
    before = objective.running.second.clone()
    held_out = batch(seed=9)
    first = objective(model, *held_out, step(6, training=False))
    assert torch.equal(objective.running.second, before)
    again = objective(model, *held_out, step(6, training=False, iteration=7))
    assert all(torch.equal(first[name], again[name]) for name in first)
    objective(model, *held_out, step(6))
    assert not torch.equal(objective.running.second, before)


def test_the_penalty_takes_over_the_moments_of_all_batches_every_update_period():
    layer, model = softmax_layer()
    objective = SGR(coefficient=0.3, form="matrix", beta=0.5, update_period=3).start(split())
    batches = [batch(seed=seed) for seed in range(4)]
    found = [objective(model, *each, step(6))["structured_gradient"] for each in batches]
    first, *_, last = gradient = [gradients(layer, *each).detach() for each in batches]
    second = sum(w * g.sign().T @ g.sign() / 6 for w, g in zip((0.125, 0.25, 0.5, 1.0), gradient, strict=True))
    running = second / second.diagonal().mean()
    for penalty, g, s in (
        (found[0], first, moments(first.sign())),
        (found[2], gradient[2], moments(first.sign())),
        (found[3], last, running),
    ):
        torch.testing.assert_close(penalty.detach(), 0.15 * form(s, g).mean())


def test_every_training_starts_with_a_covariance_of_its_own():
    _, model = softmax_layer()
    defense = SGR(form="displacement")
    one, other = defense.start(split()), defense.start(split())
    one(model, *batch(seed=9), step(6))
    first = other(model, *batch(), step(6))["structured_gradient"]
    fresh = defense.start(split())(model, *batch(), step(6))["structured_gradient"]
    assert torch.equal(first, fresh)


def test_validation_without_training_says_what_is_missing():
    with pytest.raises(ValueError, match="Expected a covariance, got none: a training step comes before validation"):
        SGR().start(split())(softmax_layer()[1], *batch(), step(6, training=False))


def test_correlated_noise_weighs_smooth_gradients_more_than_rough_ones():
    """Under long-range noise a flat gradient is penalised and a checkered one of the same norm hardly."""
    images = Split.of(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64))
    objective = SGRCorrelated(decay_length=4.0).start(images)
    flat = torch.ones(1, 1, 8, 8)
    checkered = flat * (torch.arange(8).view(-1, 1) + torch.arange(8)).remainder(2).mul(2).sub(1)
    smooth, rough = quadratic_form(objective.covariance, flat), quadratic_form(objective.covariance, checkered)
    assert smooth > 50 * rough
    facts = objective.facts()
    assert facts["decay_length"] == pytest.approx(4, rel=0.1)
    expected = operator_of(exponential((1, 8, 8), 4.0, 0.5).float())
    torch.testing.assert_close(quadratic_form(unit_diagonal(expected), flat), smooth)
    assert facts["clipped_mass"] == expected.clipped


@pytest.mark.parametrize("spec", ["sgr(coefficient=0.2)", "sgr(form='matrix')", "sgr-data", "sgr-correlated", "sgr-pgd"])
def test_a_training_tells_its_facts_and_its_checkpoint_holds_the_network_alone(lab, spec):
    defended, plain = lab.fitted(spec), lab.fitted("none")
    assert defended.modules().state_dict().keys() == plain.modules().state_dict().keys()
    assert defended.facts.keys() == {"coefficient", "clipped_mass", "mean_diagonal", "decay_length"}
    assert defended.facts["coefficient"] == (0.2 if "0.2" in spec else 0.1)
    assert 0 <= defended.facts["clipped_mass"] < 1
    assert defended.facts["mean_diagonal"] > 0
    assert defended.facts["decay_length"] > 0
    if "matrix" in spec:
        assert defended.facts["clipped_mass"] == 0


def test_training_with_a_penalty_makes_gradients_small(lab):
    """Both penalties, against plain training of the same seed; measured on the validation split."""
    held_out, budget = lab.data.validation, Budget(epochs=12, batch_size=16)

    def norm(spec: str) -> float:
        device = torch.device("cpu")
        found = lab.resolve(spec).fit(lab.small_net, lab.data, inputs={}, seed=0, device=device, budget=budget)
        return float(linearise(found.model, held_out.x, held_out.y, differentiable=False)[1].square().sum())

    plain = norm("none")
    assert norm("gradient-norm(coefficient=3.0)") < 0.7 * plain
    assert norm("sgr(coefficient=3.0)") < 0.7 * plain


@pytest.mark.parametrize("make", [SGRFGSM, SGRPGD])
def test_the_plan_must_fill_in_the_radius(make):
    with pytest.raises(ValueError, match=f"Expected `epsilon` > 0, got None: give {make.__name__} one in linf"):
        make().start(split())(softmax_layer()[1], *batch(), step(6))


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (GradientNorm, {"coefficient": -1.0}, "Expected `coefficient` >= 0, got -1.0"),
        (SGR, {"coefficient": float("nan")}, "Expected `coefficient` >= 0, got nan"),
        (SGR, {"form": "dense"}, "Expected `form` among radial, displacement, matrix, got 'dense'"),
        (SGR, {"update_period": 0}, "Expected `update_period` >= 1, got 0"),
        (SGR, {"beta": 0.0}, r"Expected `beta` in \(0, 1\], got 0.0"),
        (SGR, {"perturbation": "pgd"}, "Expected `perturbation` to be sign or gradient, got 'pgd'"),
        (SGRFGSM, {"epsilon": -0.1}, "Expected `epsilon` > 0, got -0.1"),
        (SGRFGSM, {"steps": 0}, "Expected `steps` >= 1, got 0"),
        (SGRFGSM, {"step_size": 0.0}, "Expected `step_size` > 0, got 0.0"),
        (SGRCorrelated, {"decay_length": 0.0}, "Expected `decay_length` > 0, got 0.0"),
        (SGRCorrelated, {"channel_correlation": 1.5}, r"Expected `channel_correlation` in \[0, 1\], got 1.5"),
    ],
)
def test_bad_arguments_are_refused_in_a_line(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)
