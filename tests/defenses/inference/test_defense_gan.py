"""Defense-GAN as the harness sees it: names, surrogates, composition, and the generator it is built on."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from advbench.attacks.rng import ExampleRNG
from advbench.defenses.inference.defense_gan import DefenseGAN
from advbench.defenses.inference.generator import ImageGenerator
from advbench.zoo.training import Budget


def test_defaults_are_those_of_the_papers_code():
    defense = DefenseGAN()
    assert (defense.steps, defense.restarts, defense.learning_rate, defense.momentum) == (200, 10, 10.0, 0.7)
    generator = ImageGenerator()
    assert (generator.width, generator.latent, generator.critic_steps, generator.penalty) == (64, 128, 5, 10.0)
    assert (generator.learning_rate, generator.batch_size) == (1e-4, 50)


def test_offers_the_attacker_every_surrogate(lab):
    assert list(lab.fitted("defense-gan").surrogates) == ["faithful", "bpda", "bpda-projection", "latent", "base"]


@pytest.mark.parametrize("name", ["faithful", "bpda", "bpda-projection", "latent"])
def test_surrogates_answer_as_the_scored_model_does(lab, name):
    defended, split = lab.fitted("defense-gan"), lab.data.validation
    rng = ExampleRNG.make(0, "attack", split.index).at(5)
    surrogate = defended.surrogates[name]
    assert surrogate.stochastic
    x = split.x.clone().requires_grad_()
    torch.testing.assert_close(surrogate.model(x, rng), defended.model(split.x, rng))


def test_shares_one_generator_among_all_surrogates(lab):
    defended = lab.fitted("defense-gan")
    generator = defended.model.purifier.generator
    assert defended.surrogates["bpda-projection"].model.purifier.generator is generator
    assert defended.surrogates["latent"].model.reconstruction.generator is generator


def test_stands_in_front_of_another_stochastic_defense(lab):
    spec = "defense-gan(steps=2,restarts=1,base='input-noise(passes=2)',generator='generator(width=2,latent=4)')"
    defended, split = lab.fitted(spec), lab.data.validation
    assert list(defended.surrogates) == ["faithful", "faithful-base", "bpda", "bpda-projection", "latent", "base"]
    for surrogate in defended.surrogates.values():
        x = split.x.clone().requires_grad_()
        rng = ExampleRNG.make(0, "attack", split.index)
        logits = surrogate.model(x, rng) if surrogate.stochastic else surrogate.model(x)
        (gradient,) = torch.autograd.grad(logits[:, 0].sum(), x)
        assert gradient.abs().amax() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "`steps` >= 1"),
        ({"restarts": 0}, "`restarts` in 1 to 256"),
        ({"restarts": 300}, "`restarts` in 1 to 256"),
        ({"learning_rate": -1.0}, "`learning_rate` > 0"),
        ({"momentum": 1.0}, r"`momentum` in \[0, 1\)"),
    ],
)
def test_refuses_settings_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        DefenseGAN(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": "huge"}, "`network` among convolutional, dense"),
        ({"width": 0}, "`width` >= 1"),
        ({"iterations": 0}, "`iterations` >= 1"),
        ({"lengthening": 0.0}, "`lengthening` > 0"),
        ({"penalty": -1.0}, "`penalty` >= 0"),
    ],
)
def test_the_generator_refuses_settings_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageGenerator(**arguments)


def test_refuses_a_part_that_makes_no_images(lab):
    with pytest.raises(ValueError, match="makes images of latent vectors, got 'dae'"):
        lab.build("defense-gan(generator='dae')")


def test_the_critic_sees_the_images_as_often_as_the_budget_says():
    generator = ImageGenerator(lengthening=2.0, critic_steps=5, batch_size=50)
    assert generator.iterations_of(Budget(epochs=10), 1000) == 80  # 2 * 10 * 1000 images in batches of 50, five an update
    assert dataclasses.replace(generator, iterations=7).iterations_of(Budget(epochs=10), 1000) == 7


def test_the_generator_needs_no_architecture_and_learns_the_images(lab):
    part = ImageGenerator(network="dense", width=16, latent=8, iterations=60, learning_rate=3e-3, batch_size=24)
    steps = []

    def never():
        raise AssertionError("a part for every architecture asked for one")

    fitted = part.fit(
        never,
        lab.data,
        inputs={},
        seed=0,
        device=torch.device("cpu"),
        budget=lab.budget,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps[-1] == (59, 60)
    assert fitted.facts == {"iterations": 60.0}
    z = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    real = lab.data.train.x.flatten(1)

    def far(model):
        with torch.no_grad():
            return float(torch.cdist(model(z).flatten(1), real).amin(dim=1).mean())

    untrained = part.build(never, lab.data, {}).model
    assert far(fitted.model) < 0.8 * far(untrained)


def test_the_generator_refuses_images_without_a_range(lab):
    whitened = dataclasses.replace(lab.data, box=None)
    with pytest.raises(ValueError, match=r"images in \[0, 1\] to generate"):
        ImageGenerator().build(None, whitened, {})
