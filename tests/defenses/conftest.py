"""A tiny problem that every defense can be fitted on in a moment, and the fitted defenses themselves."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks.rng import ExampleRNG
from advbench.defenses.capabilities import open_norm, with_epsilon
from advbench.defenses.defended import Defended, Defense, Input
from advbench.registry import registry
from advbench.registry.specs import Spec
from advbench.zoo.data import DataSet, Split
from advbench.zoo.training import Budget

CPU = torch.device("cpu")
BUDGET = Budget(epochs=2, batch_size=16)

LIGHT = {"defense-gan": "defense-gan(steps=4,restarts=2,generator='generator(width=4,latent=8)')"}
"""What stands for a defense whose defaults, those of its paper, take minutes."""


def blobs(n: int, *, n_classes: int, seed: int, side: int = 8) -> Split:
    """Noisy copies of one random image per class, in [0, 1], shape (n, 1, side, side)."""
    generator = torch.Generator().manual_seed(seed)
    prototypes = torch.rand(n_classes, 1, side, side, generator=torch.Generator().manual_seed(0))
    y = torch.arange(n) % n_classes
    noise = torch.randn(n, 1, side, side, generator=generator)
    return Split.of((prototypes[y] + 0.15 * noise).clamp(0, 1), y)


def make_data(n_classes: int = 3) -> DataSet:
    """Three splits, of which the test images are NaN: a defense that looks at them cannot hide it."""
    test = blobs(12, n_classes=n_classes, seed=3)
    poisoned = dataclasses.replace(test, x=torch.full_like(test.x, torch.nan))
    radii = {"linf": 0.1, "l2": 0.5, "l1": 2.0}
    train, validation = blobs(48, n_classes=n_classes, seed=1), blobs(12, n_classes=n_classes, seed=2)
    return DataSet("blobs", train, validation, poisoned, n_classes, radii)


def small_net(n_classes: int = 3) -> nn.Module:
    """A convolution with batch norm and a dense layer."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, n_classes)
    )


def _spec(given: str | Input) -> str:
    """The spec of an input; here every model has the one small net."""
    return given if isinstance(given, str) else given.spec


class Lab:
    """What the tests do with a defense: resolve its spec, fit it, build its structure, ask it."""

    small_net = staticmethod(small_net)
    make_data = staticmethod(make_data)
    budget = BUDGET
    device = CPU

    def __init__(self) -> None:
        self._fitted: dict[str, Defended] = {}

    @cached_property
    def data(self) -> DataSet:
        """The three-class problem."""
        return make_data()

    def resolve(self, spec: str, data: DataSet | None = None) -> Defense:
        """The defense of a spec, with the radius that the plan would fill in."""
        parsed = Spec.parse(LIGHT.get(spec, spec))
        defense: Any = registry.of_defense(parsed.name).create(parsed)
        norm = open_norm(defense, "linf")
        return defense if norm is None else with_epsilon(defense, (data or self.data).radii[norm])  # type: ignore[no-any-return]

    def fit(self, spec: str, data: DataSet | None = None, seed: int = 0) -> Defended:
        """The fitted defense of a spec, its inputs fitted first."""
        data = data or self.data
        defense = self.resolve(spec, data)
        inputs = {name: self.fit(_spec(inner), data, seed) for name, inner in defense.inputs.items()}
        make = lambda: small_net(data.n_classes)  # noqa: E731
        return defense.fit(make, data, inputs=inputs, seed=seed, device=self.device, budget=BUDGET)

    def fitted(self, spec: str) -> Defended:
        """The defense fitted on the three-class problem, once in the session; not to be changed."""
        if spec not in self._fitted:
            self._fitted[spec] = self.fit(spec)
        return self._fitted[spec]

    def build(self, spec: str, data: DataSet | None = None) -> Defended:
        """The untrained structure of a spec, its inputs untrained too."""
        data = data or self.data
        defense = self.resolve(spec, data)
        inputs = {name: self.build(_spec(inner), data) for name, inner in defense.inputs.items()}
        return defense.build(lambda: small_net(data.n_classes), data, inputs)

    def logits(self, defended: Defended, x: Tensor, index: Tensor, draw: int = 0) -> Tensor:
        """Logits in evaluation mode."""
        defended.model.eval()
        if defended.stochastic:
            return defended.model(x, ExampleRNG.make(0, "oracle", index).at(draw))  # type: ignore[no-any-return]
        return defended.model(x)  # type: ignore[no-any-return]


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Threads cost more than they bring on tiny tensors, most of all beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def lab() -> Lab:
    return Lab()
