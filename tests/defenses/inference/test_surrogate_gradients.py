"""The gradient of every surrogate of a purified model, unrolled loops in bounded memory, and detectors behind purifiers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks.rng import ExampleRNG
from advbench.defenses.defended import Defended, Detector, Surrogate
from advbench.defenses.inference.composition import call, checkpointed, in_front_of, purified

N = 5


class Squash(nn.Module):
    """x -> sin(3 x), pixel by pixel, whose derivative is 3 cos(3 x)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(3 * x)


class NoisySquash(nn.Module):
    """x -> sin(3 x + u) with normal u of the rng."""

    def forward(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        return torch.sin(3 * x + rng.normal(tuple(x.shape[1:]), x.dtype))


class Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


@pytest.fixture
def base() -> Defended:
    torch.manual_seed(0)
    return Defended(nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double())


def images() -> Tensor:
    return torch.rand(N, 1, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def streams() -> ExampleRNG:
    return ExampleRNG.make(0, "attack", torch.arange(N))


def logits_and_gradient(surrogate: Surrogate | Detector, x: Tensor) -> tuple[Tensor, Tensor]:
    """What it says, and the gradient of the weighted sum of that."""
    x = x.clone().requires_grad_()
    found = call(surrogate.model, x, streams(), surrogate.stochastic)
    weights = torch.linspace(-1, 1, found.numel(), dtype=x.dtype).view_as(found)
    return found.detach(), torch.autograd.grad((found * weights).sum(), x)[0]


def gradient_of(model: nn.Module, x: Tensor) -> Tensor:
    return logits_and_gradient(Surrogate(model), x)[1]


def by_differences(surrogate: Surrogate, x: Tensor, step: float = 1e-6) -> Tensor:
    weights = torch.linspace(-1, 1, N * 3, dtype=x.dtype).view(N, 3)

    def value(at: Tensor) -> Tensor:
        with torch.no_grad():
            return (call(surrogate.model, at, streams(), surrogate.stochastic) * weights).sum()

    found = torch.zeros_like(x)
    for place in range(x.numel()):
        ahead = torch.zeros_like(x)
        ahead.view(-1)[place] = step
        found.view(-1)[place] = (value(x + ahead) - value(x - ahead)) / (2 * step)
    return found


def test_each_surrogate_of_a_purifier_has_its_gradient(base):
    x = images()
    found = purified(base, Squash(), stochastic=False, substitutes={"half": Half()})
    assert list(found.surrogates) == ["faithful", "bpda", "bpda-half", "base"]
    results = {name: logits_and_gradient(surrogate, x) for name, surrogate in found.surrogates.items()}
    behind = gradient_of(base.model, torch.sin(3 * x))
    torch.testing.assert_close(results["faithful"][1], by_differences(found.surrogates["faithful"], x))
    torch.testing.assert_close(results["faithful"][1], behind * 3 * torch.cos(3 * x))
    torch.testing.assert_close(results["bpda"][1], behind)
    torch.testing.assert_close(results["bpda-half"][1], behind / 2)
    torch.testing.assert_close(results["base"][1], gradient_of(base.model, x))
    for name in ("faithful", "bpda", "bpda-half"):
        torch.testing.assert_close(results[name][0], found.model(x).detach())


def test_the_surrogates_of_a_random_purifier_see_its_draw(base):
    x = images()
    found = purified(base, NoisySquash(), stochastic=True)
    shift = streams().fork("purifier").normal((1, 2, 3), torch.float64)
    behind = gradient_of(base.model, torch.sin(3 * x + shift))
    torch.testing.assert_close(logits_and_gradient(found.surrogates["bpda"], x)[1], behind)
    faithful = logits_and_gradient(found.surrogates["faithful"], x)[1]
    torch.testing.assert_close(faithful, behind * 3 * torch.cos(3 * x + shift))
    assert not found.surrogates["base"].stochastic


def test_a_purifier_that_is_not_differentiable_has_no_faithful_surrogate(base):
    assert list(purified(base, Squash(), stochastic=False, differentiable=False).surrogates) == ["bpda", "base"]


def test_purifiers_in_front_of_one_another_keep_every_inner_surrogate(base):
    x = images()
    inner = purified(base, Half(), stochastic=False)
    outer = purified(inner, Squash(), stochastic=False)
    assert list(outer.surrogates) == ["faithful", "faithful-bpda", "faithful-base", "bpda", "base"]
    chain = 3 * torch.cos(3 * x)
    expected = {
        "faithful": gradient_of(base.model, torch.sin(3 * x) / 2) / 2 * chain,
        "faithful-bpda": gradient_of(base.model, torch.sin(3 * x) / 2) * chain,
        "faithful-base": gradient_of(base.model, torch.sin(3 * x)) * chain,
        "bpda": gradient_of(base.model, torch.sin(3 * x) / 2) / 2,
        "base": gradient_of(base.model, x / 2) / 2,
    }
    for name, gradient in expected.items():
        torch.testing.assert_close(logits_and_gradient(outer.surrogates[name], x)[1], gradient, msg=name)


class Descent:
    """A step towards lower energy that counts its calls; inner: whether it differentiates the energy itself."""

    def __init__(self, inner: bool = False) -> None:
        self.calls = 0
        self.inner = inner

    def __call__(self, x: Tensor, t: int) -> Tensor:
        self.calls += 1
        slope = 4 * x**3 + 3 * torch.cos(3 * x)
        if self.inner:
            with torch.enable_grad():
                z = x if x.requires_grad else x.detach().requires_grad_()
                (slope,) = torch.autograd.grad((z**4).sum() + torch.sin(3 * z).sum(), z, create_graph=x.requires_grad)
        return x - 0.02 * (t + 1) * slope


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 7, 16])
def test_an_unrolled_loop_has_the_gradient_of_the_plain_one(steps, inner):
    x, step = images(), Descent(inner)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, expected = checkpointed(step, one, steps), other
    for t in range(steps):
        expected = Descent()(expected, t)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad((found**2).sum(), one)[0], torch.autograd.grad((expected**2).sum(), other)[0]
    )
    assert inner or step.calls == 2 * steps  # once more on the way back, that is all that bounded memory costs


def test_without_a_gradient_the_loop_runs_once_and_keeps_no_graph():
    step = Descent()
    assert not checkpointed(step, images(), 9).requires_grad
    with torch.no_grad():
        checkpointed(step, images().requires_grad_(), 9)
    assert step.calls == 18


def test_a_loop_may_carry_several_tensors():
    def step(state: tuple[Tensor, ...], t: int) -> tuple[Tensor, ...]:
        x, velocity = state
        velocity = 0.9 * velocity - 0.1 * torch.sin(x)
        return x + velocity, velocity

    one, other = (images().requires_grad_() for _ in range(2))
    found = checkpointed(step, (one, torch.zeros(N, 1, 2, 3, dtype=torch.float64)), 10)[0]
    expected, velocity = other, torch.zeros(N, 1, 2, 3, dtype=torch.float64)
    for t in range(10):
        expected, velocity = step((expected, velocity), t)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), one)[0], torch.autograd.grad(expected.sum(), other)[0])


def test_an_unrolled_loop_keeps_few_states():
    held = []

    def step(x: Tensor, t: int) -> Tensor:
        return torch.sin(x)

    def pack(tensor: Tensor) -> Tensor:
        held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        checkpointed(step, images().requires_grad_(), 64)
    assert len(held) <= 8


class Brightness(nn.Module):
    """The mean pixel minus a threshold."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.tensor(threshold, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).mean(dim=1) - self.threshold


def test_a_detector_is_evaded_by_all_surrogates_but_that_which_ignores_it(base):
    watch = Detector(Brightness(0.5))
    found = purified(base, Squash(), stochastic=False, detector=watch)
    assert found.detector is watch
    detectors = {name: surrogate.detector for name, surrogate in found.surrogates.items()}
    assert detectors == {"faithful": watch, "bpda": watch, "base": None}
    assert {"model", "detector"} <= set(dict(found.modules().named_children()))
    assert any(name.startswith("detector.") for name in found.modules().state_dict())


def test_a_detector_of_the_base_sees_purified_images_and_either_rejects(base):
    x = images()
    inner = Defended(base.model, detector=Detector(Brightness(0.3)))
    outer = purified(inner, Squash(), stochastic=False, detector=Detector(Brightness(0.6)))
    scores, gradient = logits_and_gradient(outer.detector, x)
    behind, before = torch.sin(3 * x).flatten(1).mean(1) - 0.3, x.flatten(1).mean(1) - 0.6
    torch.testing.assert_close(scores, torch.maximum(behind, before))
    assert gradient.abs().sum() > 0
    alone = purified(inner, Squash(), stochastic=False)
    torch.testing.assert_close(alone.detector.model(x), behind)


def test_detectors_and_classifiers_see_one_purified_image(base):
    x = images()
    inner = Defended(base.model, detector=Detector(Brightness(0.3)))
    outer = purified(inner, NoisySquash(), stochastic=True)
    seen = []
    for part in (outer.model.base, outer.detector.model.base):
        part.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach()))
    outer.model(x, streams())
    outer.detector.model(x, streams())
    assert torch.equal(seen[0], seen[1])


def test_what_cannot_be_is_refused(base):
    with pytest.raises(ValueError, match="Expected a stochastic model beside a stochastic detector"):
        Defended(base.model, detector=Detector(Brightness(0.5), stochastic=True))
    with pytest.raises(ValueError, match="Expected a base without a detector"):
        in_front_of(Defended(base.model, detector=Detector(Brightness(0.5))), lambda model, _: model, stochastic=False)
