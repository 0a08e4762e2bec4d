"""The chord in latent space: the defended model's own logits, and a slope that keeps its promise."""

from __future__ import annotations

import torch
from torch import nn

from advbench.attacks.rng import ExampleRNG
from advbench.defenses.inference.latent_attack import LatentChord
from advbench.defenses.inference.latent_search import Descent, Reconstruction
from advbench.zoo.architectures.defense_gan import Generator

SHAPE = (1, 3, 4)


def chord(body: nn.Module, classifier: nn.Module) -> LatentChord:
    generator = Generator(nn.Sequential(body, nn.Unflatten(1, SHAPE)).double(), 5)
    search = Reconstruction(generator, Descent(steps=4, learning_rate=1.0, momentum=0.7), restarts=2)
    return LatentChord(search, nn.Sequential(nn.Flatten(), classifier).double(), stochastic=False)


def test_the_slope_on_linear_maps_is_the_gradient_along_the_tangent():
    torch.manual_seed(0)
    layer, classifier = nn.Linear(5, 12), nn.Linear(12, 3)
    model = chord(layer, classifier)
    matrix, weight = layer.weight.detach(), classifier.weight.detach()
    u = torch.tensor([[1.0, -1.0, 0.0], [0.25, 0.25, -0.5]], dtype=torch.float64)
    z = torch.randn(2, 5, dtype=torch.float64)
    found = model.slope(z, u, ExampleRNG.make(0, "attack", torch.arange(2))).flatten(1)
    gradient = u @ weight  # of <u, logits> in the image
    chords = gradient @ matrix @ matrix.T  # J J^T gradient, the way that steps in z go
    expected = chords * ((gradient * chords).sum(dim=1) / chords.square().sum(dim=1)).unsqueeze(1)
    torch.testing.assert_close(found, expected)


def test_the_chord_ends_in_an_error_of_the_classifier():
    torch.manual_seed(1)
    body = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 12), nn.Sigmoid())
    model = chord(body, nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3)))
    rng = ExampleRNG.make(0, "attack", torch.arange(20))
    z = torch.randn(20, 5, dtype=torch.float64)
    start = model.reconstruction.generator(z)
    logits = model.base(start)
    best, second = logits.topk(2, dim=1).indices.T
    u = nn.functional.one_hot(second, 3).double() - nn.functional.one_hot(best, 3)
    slope = model.slope(z, u, rng)
    # The slope is delta * d / ||d||^2: the chord and the rise come back out of it once one of them is known.
    step = nn.functional.normalize(slope.flatten(1), dim=1).view_as(slope)
    lengths = torch.linspace(0, 3, 61, dtype=torch.float64)
    rises = torch.stack([(u * model.base(start + length * step)).sum(dim=1) for length in lengths])
    assert ((rises > 0).any(dim=0).double().mean()) > 0.9
    assert ((u * logits).sum(dim=1) < 0).all()


def test_gives_the_logits_of_the_defended_model_and_a_gradient(lab):
    defended, split = lab.fitted("defense-gan"), lab.data.validation
    surrogate = defended.surrogates["latent"].model
    rng = ExampleRNG.make(0, "attack", split.index).at(2)
    x = split.x.clone().requires_grad_()
    logits = surrogate(x, rng)
    torch.testing.assert_close(logits, defended.model(split.x, rng))
    (gradient,) = torch.autograd.grad(logits.logsumexp(dim=1).sum() - logits[:, 0].sum(), x)
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).abs().amax(dim=1) > 0).all()
    with torch.no_grad():
        assert torch.equal(surrogate(split.x, rng), logits)
