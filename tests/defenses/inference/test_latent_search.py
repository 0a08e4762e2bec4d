"""The search for the nearest generated image, and its derivatives, against closed forms and plain autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from advbench.attacks.access import frozen
from advbench.attacks.rng import ExampleRNG
from advbench.defenses.inference import latent_search
from advbench.defenses.inference.latent_search import Descent, Projected, Reconstruction, Unrolled, nearest, projection
from advbench.zoo.architectures.defense_gan import Generator, convolutional_generator

SHAPE = (1, 3, 4)
LATENT = 5


def linear_generator() -> tuple[Generator, Tensor, Tensor]:
    """G(z) = A z + b in float64, with A (12, 5) and b (12,)."""
    torch.manual_seed(0)
    layer = nn.Linear(LATENT, 12).double()
    return Generator(nn.Sequential(layer, nn.Unflatten(1, SHAPE)), LATENT), layer.weight.detach(), layer.bias.detach()


def curved_generator() -> Generator:
    torch.manual_seed(1)
    body = nn.Sequential(nn.Linear(LATENT, 8), nn.Tanh(), nn.Linear(8, 12), nn.Sigmoid(), nn.Unflatten(1, SHAPE))
    return Generator(body.double(), LATENT)


def images(n: int, seed: int = 2) -> Tensor:
    return torch.rand(n, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def starts(n: int, restarts: int = 1) -> Tensor:
    return torch.randn(n, restarts, LATENT, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def stable(matrix: Tensor, steps: int = 1000) -> Descent:
    """A descent that converges on the linear generator of `matrix`."""
    largest = float(torch.linalg.matrix_norm(matrix, 2)) ** 2
    return Descent(steps=steps, learning_rate=12 / (2 * largest), momentum=0.7)


def test_finds_the_least_squares_latents_and_the_projection_on_a_linear_range():
    generator, matrix, bias = linear_generator()
    x = images(4)
    found, z = nearest(generator, x, starts(4), stable(matrix))
    expected = (x.flatten(1) - bias) @ torch.linalg.pinv(matrix).T
    torch.testing.assert_close(z, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.flatten(1), expected @ matrix.T + bias, atol=1e-6, rtol=1e-6)


def test_takes_the_steps_of_torchs_own_momentum_descent():
    generator, x, z = curved_generator(), images(3), starts(3).squeeze(1).requires_grad_()
    descent = Descent(steps=10, learning_rate=4.0, momentum=0.7)
    found, _ = nearest(generator, x, z.detach().unsqueeze(1).clone(), descent)
    optimizer = torch.optim.SGD([z], lr=4.0, momentum=0.7)
    for step in range(10):
        optimizer.param_groups[0]["lr"] = 4.0 if step < 8 else 0.4
        optimizer.zero_grad()
        (generator(z) - x).square().flatten(1).mean(dim=1).sum().backward()
        optimizer.step()
    torch.testing.assert_close(found, generator(z).detach())


def test_more_restarts_never_reconstruct_worse():
    generator, x = curved_generator(), images(6)
    rng = ExampleRNG.make(0, "oracle", torch.arange(6)).at(3)
    descent = Descent(steps=5, learning_rate=2.0, momentum=0.7)
    searches = [Reconstruction(generator, descent, restarts=restarts) for restarts in (1, 2, 8)]
    drawn = [search.starts(rng, torch.float64) for search in searches]
    assert torch.equal(drawn[2][:, :2], drawn[1])
    assert len(torch.unique(drawn[2].flatten(0, 1), dim=0)) == 48
    errors = [(search(x, rng) - x).square().flatten(1).mean(dim=1) for search in searches]
    assert (errors[1] <= errors[0] + 1e-12).all()
    assert (errors[2] <= errors[1] + 1e-12).all()
    assert (errors[2] < errors[0]).any()


def test_starts_are_normal_with_one_over_the_latent_length_as_variance():
    search = Reconstruction(linear_generator()[0], Descent(steps=1, learning_rate=1.0, momentum=0.0), restarts=4)
    drawn = search.starts(ExampleRNG.make(0, "oracle", torch.arange(2000)), torch.float64)
    assert drawn.shape == (2000, 4, LATENT)
    assert float(drawn.mean()) == pytest.approx(0, abs=0.01)
    assert float(drawn.square().sum(dim=2).mean()) == pytest.approx(1, abs=0.02)


def test_an_example_never_feels_its_batch(monkeypatch):
    search = Reconstruction(curved_generator(), Descent(steps=20, learning_rate=5.0, momentum=0.7), restarts=3)
    x, rng = images(6), ExampleRNG.make(0, "oracle", torch.arange(6))
    together = search(x, rng)
    other = x.clone()
    other[0] = 1 - other[0]
    changed = search(other, rng)
    assert not torch.equal(changed[0], together[0])
    assert torch.equal(changed[1:], together[1:])
    alone = torch.cat([search(x[[i]], rng.select(torch.tensor([i]))) for i in range(6)])
    torch.testing.assert_close(alone, together)
    monkeypatch.setattr(latent_search, "_ROWS", {True: 6, False: 6})
    torch.testing.assert_close(search(x, rng), together)


@pytest.mark.parametrize("restarts", [1, 4])
def test_the_unrolled_gradient_is_that_of_the_plain_loop(restarts):
    generator, x, z0, u = curved_generator(), images(3), starts(3, restarts), images(3, seed=5)
    descent = Descent(steps=7, learning_rate=6.0, momentum=0.7)
    free = x.clone().requires_grad_()
    found = Unrolled.apply(free, generator, z0, descent)
    (gradient,) = torch.autograd.grad(found, free, u)

    free = x.clone().requires_grad_()
    chosen = []
    for row in range(3):
        ends = []
        for start in z0[row]:
            z, velocity = start.clone().requires_grad_(), torch.zeros_like(start)
            for step in range(7):
                loss = (generator(z.unsqueeze(0))[0] - free[row]).square().mean()
                velocity = 0.7 * velocity + torch.autograd.grad(loss, z, create_graph=True)[0]
                z = z - (6.0 if step < 6 else 0.6) * velocity
            ends.append(generator(z.unsqueeze(0))[0])
        chosen.append(min(ends, key=lambda image, row=row: float((image - free[row]).detach().square().mean())))
    torch.testing.assert_close(found, torch.stack(chosen))
    (expected,) = torch.autograd.grad(torch.stack(chosen), free, u)
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=1e-9)
    assert gradient.abs().amax() > 1e-4


def test_the_projection_is_that_of_the_dense_jacobian():
    generator, z, u = curved_generator(), starts(4).squeeze(1), images(4)
    found = projection(generator, z, u, ridge=0.01, tolerance=1e-10)
    for row in range(4):
        jacobian = torch.func.jacrev(lambda z: generator(z.unsqueeze(0)).flatten())(z[row])
        inner = jacobian.T @ jacobian + 0.01 * torch.eye(LATENT, dtype=torch.float64)
        expected = jacobian @ torch.linalg.solve(inner, jacobian.T @ u[row].flatten())
        torch.testing.assert_close(found[row].flatten(), expected, atol=1e-9, rtol=1e-7)


def test_the_projection_is_the_derivative_of_the_converged_argmin():
    generator, matrix, _ = linear_generator()
    x, direction, z0, descent = images(2), images(2, seed=7) - 0.5, starts(2), stable(matrix)
    ahead, behind = (nearest(generator, x + h * direction, z0, descent)[0] for h in (1e-3, -1e-3))
    found = projection(generator, z0.squeeze(1), direction, ridge=0, tolerance=1e-12)
    torch.testing.assert_close(found, (ahead - behind) / 2e-3, atol=1e-6, rtol=1e-5)


def test_the_projection_holds_on_a_curved_range_where_nothing_is_left_over():
    generator, z0, direction = curved_generator(), starts(2), images(2, seed=7) - 0.5
    x = generator(z0.squeeze(1)).detach()  # on the range, so that the dropped curvature term is zero
    descent = Descent(steps=1500, learning_rate=40.0, momentum=0.9)
    ahead, behind = (nearest(generator, x + h * direction, z0, descent)[0] for h in (1e-4, -1e-4))
    found = projection(generator, z0.squeeze(1), direction, ridge=0, tolerance=1e-12)
    difference = (ahead - behind) / 2e-4
    cosine = torch.cosine_similarity(found.flatten(1), difference.flatten(1))
    assert (cosine > 0.98).all()


def test_the_ridge_of_a_short_descent_gives_nearly_its_jacobian():
    generator, matrix, _ = linear_generator()
    x, u = images(3), images(3, seed=5) - 0.5
    largest = float(torch.linalg.matrix_norm(matrix, 2)) ** 2
    descent = Descent(steps=20, learning_rate=0.2 * 12 / (2 * largest), momentum=0.0)
    gradients = []
    for function in (Unrolled, Projected):
        free = x.clone().requires_grad_()
        gradients.append(torch.autograd.grad(function.apply(free, generator, starts(3), descent), free, u)[0].flatten(1))
    assert (torch.cosine_similarity(*gradients) > 0.98).all()
    assert gradients[1].norm() == pytest.approx(float(gradients[0].norm()), rel=0.25)


class Masks(TorchDispatchMode):
    """Which of (input, weight, bias) every backward of a convolution was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution_backward.default:
            self.seen.append(tuple(args[-1]))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("wants", [False, True])
def test_never_computes_gradients_of_the_generators_parameters(wants):
    generator = convolutional_generator((1, 8, 8), latent=LATENT, width=2)
    search = Reconstruction(generator, Descent(steps=3, learning_rate=1.0, momentum=0.7), restarts=2)
    x, rng = torch.rand(2, 1, 8, 8, requires_grad=wants), ExampleRNG.make(0, "oracle", torch.arange(2))
    with Masks() as masks:
        found = search(x, rng)
    assert masks.seen == [(True, False, False)] * 9
    if wants:
        with frozen(generator):
            torch.autograd.grad(found.sum(), x)
    assert all(parameter.grad is None for parameter in generator.parameters())


def test_searches_in_inference_mode_too():
    search = Reconstruction(curved_generator(), Descent(steps=3, learning_rate=1.0, momentum=0.7), restarts=2)
    x, rng = images(2), ExampleRNG.make(0, "oracle", torch.arange(2))
    expected = search(x, rng)
    with torch.inference_mode():
        assert torch.equal(search(x.clone(), rng), expected)
    assert not expected.requires_grad
