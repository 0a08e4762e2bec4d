from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks.diverse import DIFGSM, resized
from advbench.attacks.momentum import MIFGSM
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import ThreatModel, Untargeted

SHAPE = (2, 8, 6)


def net() -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(96, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    for parameter in model.parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    return model


def images(n: int = 12) -> Tensor:
    return torch.rand(n, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def run(white_box, attack, model: nn.Module, x: Tensor, goal: Untargeted, index: Tensor | None = None) -> Tensor:
    with white_box(model, torch.arange(len(x)) if index is None else index) as access:
        return attack(access, x, goal, ThreatModel("linf", 0.1), access.rng)


@pytest.mark.parametrize("stop", ["success", "never"])
def test_without_transformations_it_is_the_momentum_method(white_box, stop):
    model, x = net(), images()
    goal = Untargeted(model(x).argmax(dim=1))
    plain = run(white_box, MIFGSM(stop=stop), model, x, goal)
    assert torch.equal(run(white_box, DIFGSM(probability=0, stop=stop), model, x, goal), plain)
    assert torch.equal(run(white_box, DIFGSM(probability=1, smallest=1, stop=stop), model, x, goal), plain)
    assert not torch.equal(run(white_box, DIFGSM(probability=1, smallest=0.5, stop=stop), model, x, goal), plain)


def test_images_are_resized_and_padded_as_torch_does_it():
    x = images(200)
    numbers = ExampleRNG.make(0, "attack", torch.arange(200)).uniform((4,), torch.float64)
    found, sizes = resized(x, numbers, 0.7, 0.5), set()
    for image, each, (whether, size, top, left) in zip(x, found, numbers.tolist(), strict=True):
        if whether >= 0.7:
            assert torch.equal(each, image)
            continue
        height, width = 4 + int(size * 5), 3 + int(size * 4)
        above, before = int(top * (8 - height + 1)), int(left * (6 - width + 1))
        small = nn.functional.interpolate(image.unsqueeze(0), size=(height, width), mode="nearest")[0]
        pads = (before, 6 - width - before, above, 8 - height - above)
        assert torch.equal(each, nn.functional.pad(small, pads))
        sizes.add((height, above))
    assert sizes == {(height, above) for height in range(4, 9) for above in range(9 - height)}


def test_every_step_follows_the_gradient_of_a_newly_transformed_image(white_box, linear):
    """On a linear model a step is sign(T^T w), T the dense matrix of the example's transformation; the better end stays."""
    weight = torch.randn(2, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model, x = linear(weight, torch.zeros(2, dtype=torch.float64)), images(20)
    goal = Untargeted(torch.zeros(20, dtype=torch.int64))
    attack = DIFGSM(steps=2, step_size=0.5, decay=0, probability=0.7, smallest=0.5, stop="never")
    with white_box(model, 20) as access:
        found = attack(access, x, goal, ThreatModel("linf", 0.1, box=None), access.rng)
        numbers = [access.rng.fork("diversity").at(step).uniform((4,), torch.float64) for step in range(2)]
    assert (access.ledger.forwards == 5).all()
    assert (access.ledger.backwards == 2).all()
    basis, ahead = torch.eye(96, dtype=torch.float64).view(96, *SHAPE), (weight[1] - weight[0]).flatten()
    for row in range(20):
        matrices = [resized(basis, each[row].expand(96, 4), 0.7, 0.5).flatten(1) for each in numbers]
        first, second = (0.05 * (matrix @ ahead).sign() for matrix in matrices)  # row i of a matrix: where pixel i went
        expected = max(first, first + second, key=lambda delta: float(delta @ ahead))
        torch.testing.assert_close((found[row] - x[row]).flatten(), expected)
    assert (found == x).any()


def test_an_example_keeps_its_transformations_in_any_batch(white_box):
    model, x = net(), images()
    goal = Untargeted(model(x).argmax(dim=1))
    attack = DIFGSM(probability=0.5, smallest=0.5)
    whole = run(white_box, attack, model, x, goal)
    for rows in torch.tensor([7, 2, 0, 11, 5]).split(2):
        found = run(white_box, attack, model, x[rows], goal.select(rows), rows)
        torch.testing.assert_close(found, whole[rows], rtol=0, atol=1e-10)


@pytest.mark.parametrize(("field", "value"), [("probability", -0.1), ("probability", 1.1), ("smallest", 0), ("smallest", 2)])
def test_numbers_that_make_no_sense_are_refused(field, value):
    with pytest.raises(ValueError, match=f"Expected `{field}` in"):
        DIFGSM(**{field: value})
    with pytest.raises(ValueError, match="Expected `steps` > 0"):
        DIFGSM(steps=0)
