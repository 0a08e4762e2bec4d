"""The autoencoders of Gu & Rigazio: what they are trained on, what they restore, and the attack on the stack."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from advbench.attacks import balls
from advbench.attacks.calibration import HeldOut, calibrate
from advbench.attacks.lbfgs import LBFGS
from advbench.attacks.threat import ThreatModel
from advbench.defenses.defended import Input
from advbench.defenses.inference.autoencoder import (
    Autoencoder,
    DenoisingAutoencoder,
    DenseDAE,
    adversarials,
    restoring,
    untrained,
)
from advbench.defenses.training.plain import Plain
from advbench.zoo.architectures.gu2014 import autoencoder
from advbench.zoo.training import Budget, Step

CPU = torch.device("cpu")
LONG = Budget(epochs=200, batch_size=16)


def test_the_shape_is_the_papers():
    network = autoencoder((1, 28, 28))
    widths = [(layer.in_features, layer.out_features) for layer in network if isinstance(layer, torch.nn.Linear)]
    assert widths == [(784, 256), (256, 128), (128, 256), (256, 784)]


def dense_net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 3))


@pytest.fixture(scope="module")
def source(lab):
    """A classifier that has learnt the problem."""
    return Plain().fit(dense_net, lab.data, inputs={}, seed=0, device=CPU, budget=LONG)


def rms(found: torch.Tensor, x: torch.Tensor) -> float:
    return float((found - x).square().mean().sqrt())


def test_the_noise_dae_takes_noise_away(lab):
    data = lab.data
    part = lab.resolve("dense-dae(sigma=0.3, batch_size=None)").fit(None, data, inputs={}, seed=0, device=CPU, budget=LONG)
    x = data.validation.x
    noisy = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert rms(part.model(noisy), x) < 0.75 * rms(noisy, x)


def test_the_noise_dae_is_one_for_all_classifiers_and_follows_its_seed(lab):
    resolved = lab.resolve("dense-dae")
    assert type(resolved).any_architecture
    assert resolved.inputs == {}

    def weights(seed):
        fitted = resolved.fit(None, lab.data, inputs={}, seed=seed, device=CPU, budget=lab.budget)
        return fitted.model[1].weight

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


@pytest.fixture(scope="module")
def crafted(lab, source):
    """The paper's adversarials of the source around validation images."""
    return adversarials(LBFGS(), source.surrogates["faithful"], lab.data.validation, lab.data, seed=0, device=CPU)


def error(model, x, y) -> float:
    with torch.no_grad():
        return float((model(x).argmax(dim=1) != y).float().mean())


def test_adversarials_fool_the_source_inside_the_box_and_not_far_away(lab, source, crafted):
    split = lab.data.validation
    assert error(source.model, split.x, split.y) == 0
    assert error(source.model, crafted, split.y) >= 0.9
    assert not balls.violations(crafted, split.x, ThreatModel("l2", None, (0.0, 1.0))).any()
    apart = balls.distance(split.x[:1] - split.x[1:2], "l2")  # of two classes
    assert balls.distance(crafted - split.x, "l2").max() < apart


def test_pairs_are_one_to_one_and_drawn_from_those_crafted():
    """A model that gives back what it gets: no clean error, an adversarial one of the squared size of what is drawn."""
    x = torch.rand(3, 1, 4, 4)
    sizes = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1, 1)
    objective = restoring(x, x + sizes)
    step = Step(0, 0, 0, torch.arange(400))
    terms = objective(torch.nn.Identity(), torch.rand(400, 1, 4, 4), torch.zeros(400), step)
    assert terms["clean"] == 0
    mean = 16 * (0.01 + 0.04 + 0.09) / 3
    assert float(terms["adversarial"]) == pytest.approx(mean, rel=0.1)  # each crafted image about as often as another
    later = objective(
        torch.nn.Identity(), torch.rand(400, 1, 4, 4), torch.zeros(400), dataclasses.replace(step, iteration=1)
    )
    assert later["adversarial"] != terms["adversarial"]
    quiet = objective(torch.nn.Identity(), x, torch.zeros(3), dataclasses.replace(step, training=False))
    assert set(quiet) == {"clean"}


@pytest.fixture(scope="module")
def restorer(lab, source):
    """An autoencoder of the source's adversarials, trained long enough to be of use."""
    part = lab.resolve("adversarial-autoencoder(attack='deepfool', images=48, batch_size=None)")
    return part.fit(None, lab.data, inputs={"source": source}, seed=0, device=CPU, budget=LONG)


def test_an_autoencoder_of_adversarials_restores_them(lab, source, restorer, crafted):
    split = lab.data.validation
    assert error(source.model, restorer.model(crafted), split.y) <= 0.1
    assert error(source.model, restorer.model(split.x), split.y) <= 0.1


def test_the_source_comes_back_as_it_was(lab):
    source = lab.fit("none")
    before = {name: value.clone() for name, value in source.model.state_dict().items()}
    source.model.train()
    lab.resolve("adversarial-autoencoder(attack='deepfool', images=10)").fit(
        None, lab.data, inputs={"source": source}, seed=0, device=CPU, budget=Budget(epochs=1)
    )
    assert source.model.training
    assert all(torch.equal(value, before[name]) for name, value in source.model.state_dict().items())
    assert all(parameter.requires_grad for parameter in source.model.parameters())


def test_the_source_may_have_another_architecture_and_the_part_is_shared_by_all_who_ask_for_it():
    one = Autoencoder(source="weight-decay", source_architecture="gu2014/convnet", attack="lbfgs", images=100)
    other = dataclasses.replace(one, base="pgd-linf")
    assert one.inputs["autoencoder"] == other.inputs["autoencoder"]
    assert one.inputs["autoencoder"] == Input(
        "adversarial-autoencoder(attack='lbfgs', images=100, source='weight-decay')", "gu2014/convnet"
    )
    assert other.inputs["base"] == "pgd-linf"
    assert Autoencoder().inputs["autoencoder"].architecture is None


@pytest.mark.parametrize("spec", ["autoencoder(attack='deepfool', images=20)", "denoising-autoencoder(sigma=0.3)"])
def test_the_stack_is_the_classifier_behind_the_autoencoder(lab, spec):
    stack, base, x = lab.fitted(spec), lab.fitted("none"), lab.data.validation.x
    assert list(stack.surrogates) == ["faithful", "bpda", "base"]
    assert stack.surrogates["faithful"].model is stack.model
    (inner,) = (one for name, one in lab.resolve(spec).inputs.items() if name == "autoencoder")
    part = lab.fitted(inner.spec if isinstance(inner, Input) else inner)
    torch.testing.assert_close(stack.model(x), base.model(part.model(x)))


def test_the_gradient_of_the_stack_runs_through_the_autoencoder(lab):
    stack, base = lab.fitted("denoising-autoencoder"), lab.fitted("none")
    part, x = lab.fitted("dense-dae(sigma=0.1)"), lab.data.validation.x
    images = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(stack.surrogates["faithful"].model(images)[:, 0].sum(), images)
    pure = part.model(x).detach().requires_grad_()
    (upper,) = torch.autograd.grad(base.model(pure)[:, 0].sum(), pure)
    again = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(part.model(again), again, upper)
    torch.testing.assert_close(found, expected)
    (identity,) = torch.autograd.grad(stack.surrogates["bpda"].model(images)[:, 0].sum(), images)
    torch.testing.assert_close(identity, upper)


def test_the_paper_attack_breaks_the_stack_with_a_constant_of_its_own(lab, source, restorer):
    """The last row of table 3: a new c for the stack, and the distances of what it finds."""
    split = lab.data.validation
    stack = Autoencoder().build(None, lab.data, {"base": source, "autoencoder": restorer})
    threat = ThreatModel("l2", None, (0.0, 1.0))
    held_out = HeldOut(x=split.x, y=split.y, index=split.index, threat=threat, model=stack.surrogates["faithful"].model)
    found = calibrate(LBFGS(), held_out)
    trial = held_out.attacked(found)
    assert found.c is not None
    assert trial.broken.all()
    assert error(stack.model, trial.x_adv, split.y) == 1
    assert balls.distance(trial.x_adv - split.x, "l2").median() > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Autoencoder(attack="pgd"), "Expected `attack` among lbfgs, deepfool, got 'pgd'"),
        (lambda: Autoencoder(images=0), "Expected `images` >= 1, got 0"),
        (lambda: DenoisingAutoencoder(sigma=-0.1), "Expected `sigma` >= 0, got -0.1"),
        (lambda: DenseDAE(batch_size=0), "Expected `batch_size` >= 1, got 0"),
    ],
)
def test_rejects_what_makes_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_images_without_a_range_are_refused(lab):
    with pytest.raises(ValueError, match=r"Expected images with pixels in \[0, 1\], got those of blobs"):
        untrained(dataclasses.replace(lab.data, box=None), seed=0)
