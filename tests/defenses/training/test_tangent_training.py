"""The tangent set: neighbours by brute force, bases of known planes, and the maximiser in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advbench.defenses.training.tangent import RobustTangent, nearest, on_plane, tangent_basis
from advbench.zoo.data import Split
from advbench.zoo.training import Step

SHAPE = (1, 3, 4)


def planar(n: int = 40, seed: int = 0) -> tuple[Split, Tensor]:
    """Images on one plane of two dimensions for each of two classes, and the planes' bases, shape (2, 2, 12)."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(2, 12, 2, generator=generator, dtype=torch.float64)).Q.mT
    origins = 0.4 + 0.2 * torch.rand(2, 12, generator=generator, dtype=torch.float64)
    y = torch.arange(n) % 2
    along = 0.05 * torch.randn(n, 1, 2, generator=generator, dtype=torch.float64)
    x = origins[y] + (along @ directions[y]).squeeze(1)
    return Split.of(x.view(n, *SHAPE), y), directions


def linear() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    return model


def perturbed(defense: RobustTangent, split: Split, model: nn.Module, *, training: bool = True) -> Tensor:
    seen: list[Tensor] = []
    handle = model.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach()))
    step = Step(0, 0, 0, split.index, training)
    terms = defense.start(split)(model, split.x, split.y, step)
    handle.remove()
    torch.testing.assert_close(terms["adversarial"], nn.functional.cross_entropy(model(seen[-1]), split.y))
    return seen[-1]


def test_neighbours_are_the_nearest_of_the_class():
    split, _ = planar()
    found = nearest(split.x, split.y, split, 5)
    for row in range(len(split)):
        distance = (split.x - split.x[row]).flatten(1).norm(dim=1).masked_fill(split.y != split.y[row], torch.inf)
        assert sorted(found[row].tolist()) == sorted(distance.argsort()[:5].tolist())
        assert found[row, 0] == row


def test_the_basis_of_images_on_a_plane_spans_that_plane():
    split, directions = planar()
    around = split.x[nearest(split.x, split.y, split, 8)]
    basis = tangent_basis(around, 2)
    projections, expected = (b.mT @ b for b in (basis, directions[split.y]))
    torch.testing.assert_close(projections, expected)
    torch.testing.assert_close(basis @ basis.mT, torch.eye(2, dtype=torch.float64).expand(40, 2, 2))
    more = tangent_basis(around, 4)  # the images span two directions: the rest is zero
    torch.testing.assert_close(more[:, :2].mT @ more[:, :2], expected)
    assert torch.equal(more[:, 2:], torch.zeros_like(more[:, 2:]))


def test_the_basis_holds_the_leading_principal_directions():
    around = torch.rand(3, 9, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    basis = tangent_basis(around, 3)
    for images, found in zip(around.flatten(2), basis, strict=True):
        _, _, expected = torch.linalg.svd(images - images.mean(dim=0), full_matrices=False)
        torch.testing.assert_close(found.T @ found, expected[:3].T @ expected[:3])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("steps", [1, 4])
def test_the_perturbation_is_the_projected_gradient_at_full_radius(steps, training):
    """Shaham et al. 2015; on a linear model the gradient's direction is constant, so steps change nothing."""
    (split, directions), model = planar(), linear()
    defense = RobustTangent(epsilon=0.2, neighbours=6, dimension=2, steps=steps, step_size=0.7, clip=False)
    defense = defense if steps > 1 else RobustTangent(epsilon=0.2, neighbours=6, dimension=2, clip=False)
    delta = (perturbed(defense, split, model, training=training) - split.x).flatten(1)
    difference = (model[1].weight[1] - model[1].weight[0]).detach()
    outward = (1 - 2 * split.y).unsqueeze(1) * difference
    along = on_plane(outward.view(split.x.shape), directions[split.y]).flatten(1)
    torch.testing.assert_close(delta, 0.2 * along / along.norm(dim=1, keepdim=True))


def test_clipped_images_stay_in_the_box_and_in_the_ball():
    split, _ = planar()
    pushed = Split(((split.x - 0.5) * 5 + 0.5).clamp(0, 1), split.y, split.index)
    x_adv = perturbed(RobustTangent(epsilon=0.8, neighbours=6, dimension=2), pushed, linear())
    assert 0 <= x_adv.min() <= x_adv.max() <= 1
    assert (x_adv - pushed.x).flatten(1).norm(dim=1).max() <= 0.8 + 1e-9
    assert (perturbed(RobustTangent(epsilon=0.8, neighbours=6, dimension=2, clip=False), pushed, linear())).min() < 0


def test_neighbours_are_moved_by_the_augmentation_of_their_image():
    """Under a mirror image the tangent plane is mirrored, and so is the perturbation of a mirrored network."""
    split, _ = planar()
    defense = RobustTangent(epsilon=0.2, neighbours=6, dimension=2, clip=False)
    objective, model = defense.start(split), linear()
    seen: list[Tensor] = []

    class Mirrored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach())
            return self.inner(x.flip(3))  # type: ignore[no-any-return]

    step = Step(0, 0, 0, split.index, transform=lambda x: x.flip(3))
    objective(Mirrored(), split.x.flip(3), split.y, step)
    torch.testing.assert_close(seen[-1].flip(3), perturbed(defense, split, model))


def test_small_classes_have_fewer_neighbours():
    split, _ = planar(n=6)
    x_adv = perturbed(RobustTangent(epsilon=0.2), split, linear())  # three images of each class, 20 neighbours asked for
    assert (x_adv - split.x).abs().max() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dimension": 30}, "Expected 1 <= `dimension` <= `neighbours`, got 30 and 20"),
        ({"dimension": 0}, "Expected 1 <= `dimension` <= `neighbours`, got 0 and 20"),
        ({"steps": 0}, "Expected `steps` >= 1, got 0"),
        ({"step_size": 0.0}, "Expected `step_size` > 0, got 0.0"),
        ({"epsilon": -1.0}, "Expected `epsilon` > 0, got -1.0"),
    ],
)
def test_rejects_what_makes_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        RobustTangent(**arguments)


def test_the_plan_must_fill_in_the_radius():
    with pytest.raises(ValueError, match="Expected `epsilon` > 0, got None: give RobustTangent one in l2"):
        RobustTangent().start(planar()[0])
