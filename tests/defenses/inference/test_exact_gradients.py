"""The gradient that the attacker gets of each whole chain, purifier, classifier and detector, against finite differences.

In float64, at fixed random numbers, through every step, with the graph kept whole and with it run again (checkpointed). A
step that is left out, detached or replaced by a substitute shows as a difference in the first digits.
"""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks.access import ask
from advbench.attacks.rng import ExampleRNG
from advbench.defenses.inference.latent_search import Descent, Reconstruction
from advbench.zoo.architectures.defense_gan import Generator

LANGEVIN = "step_size=0.3, noise=0.05, epsilon=0.1"
GENERATOR = "generator='generator(width=4,latent=8)'"
CHAINS = [
    "magnet",
    "magnet(detector=[1.0, 2.0], temperatures=[10.0, 40.0])",
    "magnet(temperatures=[10.0], autoencoders=3)",
    f"mala({LANGEVIN})",
    f"malade({LANGEVIN})",
    f"malade({LANGEVIN}, metropolis=True)",
    f"malade({LANGEVIN}, clip=True)",
    "malade(step_size=0.3, noise=0.0, noise_offset=0.0, steps=17)",
    f"malade({LANGEVIN}, base='magnet')",
    f"defense-gan(steps=20, restarts=2, {GENERATOR})",
    f"defense-gan(steps=20, restarts=2, {GENERATOR}, base='input-noise(passes=2)')",
    "total-variation(steps=20)",
    "denoising-autoencoder",
    "autoencoder(images=16)",
    "gaussian-blur",
    "input-noise(passes=3)",
    "layer-noise(passes=3)",
    "feature-squeezing",
]
STEP = 1e-6


@pytest.fixture(params=[True, False], ids=["kept whole", "run again"])
def graphs(request, monkeypatch):
    """Both ways in which a chain of steps may keep its graph."""
    if not request.param:
        monkeypatch.setattr("advbench.defenses.inference.langevin._KEPT_WHOLE", 0)


def streams(n: int) -> ExampleRNG:
    return ExampleRNG.make(0, "attack", torch.arange(n)).at(3)


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_exact(says: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """The gradient of every image, along five directions of its own, is the central difference there."""
    free = x.clone().requires_grad_()
    found = says(free)
    weights = drawn(*found.shape, seed=1)
    (gradient,) = torch.autograd.grad((found * weights).sum(), free)
    assert (gradient.flatten(1).abs().amax(dim=1) > 0).all()
    for seed in range(5):
        along = drawn(*x.shape, seed=10 + seed)
        along = along / along.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        with torch.no_grad():
            ahead, behind = ((says(x + sign * STEP * along) * weights).flatten(1).sum(dim=1) for sign in (1, -1))
        slope = (gradient * along).flatten(1).sum(dim=1)
        size = gradient.flatten(1).norm(dim=1)
        torch.testing.assert_close(slope / size, (ahead - behind) / (2 * STEP) / size, atol=1e-5, rtol=0)


def asking(model: nn.Module, stochastic: bool, n: int) -> Callable[[Tensor], Tensor]:
    return lambda x: ask(model, x, streams(n) if stochastic else None).view(len(x), -1)


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("spec", CHAINS)
def test_the_gradient_of_a_whole_chain_is_exact(lab, spec):
    fitted = lab.fitted(spec)
    assert next(iter(fitted.surrogates)) == "faithful"
    faithful = fitted.surrogates["faithful"]
    assert faithful.model is fitted.model  # what is differentiated is what is scored
    assert faithful.exact
    assert faithful.detector is fitted.detector
    n, parts = 4, copy.deepcopy(fitted.modules()).double().eval()
    x = 0.05 + 0.9 * lab.data.validation.x[:n].double()
    assert_exact(asking(parts["surrogate-faithful"], faithful.stochastic, n), x)


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("spec", [spec for spec in CHAINS if "magnet" in spec])
def test_the_gradient_of_a_detector_is_exact(lab, spec):
    fitted = lab.fitted(spec)
    n, parts = 4, copy.deepcopy(fitted.modules()).double().eval()
    x = 0.05 + 0.9 * lab.data.validation.x[:n].double()
    assert_exact(asking(parts["detector"], fitted.detector.stochastic, n), x)


def test_a_chain_that_leaves_a_step_out_would_be_caught(lab):
    """The proof that the tests above can fail: one step of ten without its gradient."""
    fitted = lab.fitted(f"malade({LANGEVIN})")
    model = copy.deepcopy(fitted.model).double().eval()
    denoiser, asked = model.purifier.denoiser, []

    def forget(_: nn.Module, __: object, output: Tensor) -> Tensor:
        asked.append(1)
        return output.detach() if len(asked) % 10 == 5 else output

    denoiser.register_forward_hook(forget)
    with pytest.raises(AssertionError, match="not close"):
        assert_exact(asking(model, True, 4), 0.05 + 0.9 * lab.data.validation.x[:4].double())


@pytest.mark.parametrize("steps", [10, 40])
def test_what_defense_gan_keeps_for_its_gradient_are_latent_vectors(steps):
    """Four times the steps keep four times the latent vectors, and no more images."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(5, 64), nn.Tanh(), nn.Linear(64, 144), nn.Sigmoid(), nn.Unflatten(1, (1, 12, 12)))
    search = Reconstruction(Generator(body, 5), Descent(steps=steps, learning_rate=2.0, momentum=0.7), restarts=3)
    held: weakref.WeakSet[Held] = weakref.WeakSet()

    def pack(tensor: Tensor) -> Held:
        one = Held(tensor)
        held.add(one)
        return one

    x = torch.rand(2, 1, 12, 12, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one.tensor):
        found = search(x, ExampleRNG.make(0, "attack", torch.arange(2)))
    gc.collect()
    assert found.requires_grad
    assert sum(one.tensor.numel() for one in held) == (steps + 1) * 2 * 5 + x.numel()


class Held:
    """What a graph keeps, as long as it does."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
