from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks import balls
from advbench.attacks.access import ScoreBased, WhiteBox
from advbench.attacks.losses import margin
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.square import Square, _peak
from advbench.attacks.threat import ThreatModel, Untargeted

RADII = {"linf": 0.1, "l2": 0.5, "l1": 2.0}


def rng(n: int) -> ExampleRNG:
    return ExampleRNG.make(0, "attack", torch.arange(n))


def images(n: int, shape: tuple[int, int, int] = (2, 9, 8)) -> Tensor:
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (1.5 * x - 0.25).clamp(0, 1)


class Watched(nn.Module):
    """A linear model that remembers its queries; gradients through it are an error."""

    def __init__(self, shape: tuple[int, ...], classes: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(classes)
        self.weight = torch.randn(classes, *shape, generator=generator, dtype=torch.float64)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        assert not x.requires_grad
        self.seen.append(x.detach().clone())
        return x.flatten(1) @ self.weight.flatten(1).T


def attacked(attack: Square, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> tuple[Tensor, ScoreBased]:
    with ScoreBased(model, rng(len(x))) as access:
        return attack(access, x, Untargeted(y), threat, rng(len(x))), access


def right(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).argmax(dim=1)


def test_the_best_corner_of_a_small_image_is_found():
    """Four values: among all 16 corners of ball and box the search ends at the worst one."""
    x, epsilon = images(10, (1, 2, 2)), 0.05
    model = Watched((1, 2, 2))
    y = right(model, x)
    corners = [
        (x + epsilon * torch.tensor(signs, dtype=torch.float64).view(1, 1, 2, 2)).clamp(0, 1)
        for signs in itertools.product((-1, 1), repeat=4)
    ]
    best = torch.stack([margin(model(corner), Untargeted(y)) for corner in corners]).amax(dim=0)
    x_adv, _ = attacked(Square(queries=300, stop="never"), model, x, y, ThreatModel("linf", epsilon))
    torch.testing.assert_close(margin(model(x_adv), Untargeted(y)), best)


def test_the_first_query_is_stripes_of_the_balls_corners():
    """Every value moves by epsilon, a column of a channel in one direction, and both directions occur."""
    x = 0.3 + 0.4 * torch.rand(8, 2, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    model = Watched(x.shape[1:])
    y = right(model, x)
    model.seen.clear()
    attacked(Square(queries=1, stop="never"), model, x, y, ThreatModel("linf", 0.1))
    stripes = (model.seen[0] - x) / 0.1
    torch.testing.assert_close(stripes.abs(), torch.ones_like(stripes))
    assert (stripes.std(dim=2) < 1e-9).all()
    assert 0.3 < (stripes > 0).double().mean() < 0.7


@pytest.mark.parametrize("norm", RADII)
def test_queries_are_counted_and_stay_inside(norm):
    x = images(6)
    model = Watched(x.shape[1:])
    y, threat = right(model, x), ThreatModel(norm, RADII[norm] / 50)
    model.seen.clear()
    x_adv, access = attacked(Square(queries=70), model, x, y, threat)
    assert access.ledger.queries.tolist() == [71] * 6  # one for the clean images
    assert len(model.seen) == 71
    for query in model.seen:
        assert not balls.violations(query, x, threat).any()
    looked = torch.stack([margin(query.flatten(1) @ model.weight.flatten(1).T, Untargeted(y)) for query in model.seen])
    torch.testing.assert_close(margin(model(x_adv), Untargeted(y)), looked.amax(dim=0))


@pytest.mark.parametrize("norm", RADII)
def test_what_is_broken_is_asked_no_more(norm):
    x = images(12)
    model = Watched(x.shape[1:])
    y = right(model, x)
    y[0] = (y[0] + 1) % 3
    x_adv, access = attacked(Square(queries=150), model, x, y, ThreatModel(norm, {"linf": 0.2, "l2": 3.5, "l1": 16.0}[norm]))
    broken, queries = right(model, x_adv) != y, access.ledger.queries
    assert torch.equal(x_adv[0], x[0])
    assert queries[0] == 1
    assert 2 < broken.sum() < 12
    assert (queries[~broken] == 151).all()
    assert (queries[broken][1:] < 151).all()


@pytest.mark.parametrize("norm", RADII)
def test_more_queries_go_on_where_fewer_stopped(norm):
    """Without rescaling, 40 queries are the first 40 of 120; the margin never falls."""
    x = images(4)
    model = Watched(x.shape[1:])
    y, threat, seen, margins = right(model, x), ThreatModel(norm, RADII[norm] / 10), [], []
    for queries in (40, 120):
        model.seen.clear()
        x_adv, _ = attacked(Square(queries=queries, rescale=False, stop="never"), model, x, y, threat)
        seen.append(torch.stack(model.seen))
        margins.append(margin(model(x_adv), Untargeted(y)))
    assert torch.equal(seen[0], seen[1][:40])
    assert (margins[1] >= margins[0]).all()
    assert (margins[1] > margins[0]).any()


def test_linf_queries_change_one_square_to_one_corner_in_each_channel():
    x = images(3, (2, 10, 10)).clamp(0.3, 0.7)
    model = Watched(x.shape[1:])
    y, epsilon = right(model, x), 0.1
    model.seen.clear()
    attacked(Square(queries=60, rescale=False, stop="never"), model, x, y, ThreatModel("linf", epsilon))
    start = (model.seen[0] - x) / epsilon
    torch.testing.assert_close(start.abs(), torch.ones_like(x))
    torch.testing.assert_close(start, start[:, :, :1].expand_as(start))  # vertical stripes
    scores = [margin(query.flatten(1) @ model.weight.flatten(1).T, Untargeted(y)) for query in model.seen]
    best, places = model.seen[0], set()
    best_score = scores[0]
    for number, (query, score) in enumerate(zip(model.seen[1:], scores[1:], strict=True)):
        side = 9 if number <= 10 else 6 if number <= 50 else 4  # sqrt(0.8, 0.4, 0.2 of 100 pixels)
        changed, delta = query != best, (query - x) / epsilon
        for row in range(3):
            rows, columns = changed[row].any(dim=0).nonzero(as_tuple=True)
            if len(rows):
                assert max(int(rows.max() - rows.min()), int(columns.max() - columns.min())) < side
                places.add((int(rows.min()), int(columns.min())))
            for channel in range(2):
                moved = delta[row, channel][changed[row, channel]]
                torch.testing.assert_close(moved, moved[:1].sign().expand_as(moved))
        better = score > best_score
        best = query.where(better.view(-1, 1, 1, 1), best)
        best_score = score.where(better, best_score)
    assert len(places) > 10


@pytest.mark.parametrize(
    ("query", "side"), [(1, 25), (11, 25), (12, 18), (51, 18), (52, 13), (202, 9), (502, 6), (1002, 4), (2002, 3), (8002, 1)]
)
def test_squares_shrink_as_in_the_paper(query, side):
    """28 x 28 pixels, p = 0.8 halved after 10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000 of 10,000 queries."""
    x = torch.zeros(1, 1, 28, 28)
    assert Square(queries=10_000)._side(query, x) == side
    assert Square(queries=5000, rescale=False)._side(query, x) == side
    assert Square(queries=20_000)._side(2 * query - 1, x) == side


def test_two_windows_share_the_l2_budget():
    """Wherever the box does not clip, every query spends all of epsilon."""
    x = torch.full((4, 3, 11, 11), 0.5, dtype=torch.float64)
    model = Watched(x.shape[1:])
    threat = ThreatModel("l2", 0.4)
    attacked(Square(queries=80, stop="never"), model, x, right(model, x), threat)
    for query in model.seen[1:]:
        torch.testing.assert_close(balls.distance(query - x, "l2"), torch.full((4,), 0.4, dtype=torch.float64))


@pytest.mark.parametrize("norm", RADII)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 5), (1, 3, 3), (40, 4, 4)])
def test_images_of_any_shape(norm, shape):
    x = images(2, shape)
    model = Watched(x.shape[1:])
    threat = ThreatModel(norm, RADII[norm])
    x_adv, _ = attacked(Square(queries=30, stop="never"), model, x, right(model, x), threat)
    assert not balls.violations(x_adv, x, threat).any()


@pytest.mark.parametrize("norm", RADII)
def test_every_example_has_squares_of_its_own(norm):
    x = images(1).expand(3, -1, -1, -1).clone()
    model = Watched(x.shape[1:])
    threat = ThreatModel(norm, RADII[norm] / 10)
    y = right(model, x)
    model.seen.clear()
    attacked(Square(queries=5, stop="never"), model, x, y, threat)
    assert not torch.equal(model.seen[1][0], model.seen[1][1])
    assert not torch.equal(model.seen[2][1], model.seen[2][2])


def test_white_box_access_gives_the_same_images():
    x = images(4)
    model = Watched(x.shape[1:])
    y, threat = right(model, x), ThreatModel("linf", 0.02)
    found, _ = attacked(Square(queries=50), model, x, y, threat)
    with WhiteBox(model, rng(4)) as access:
        assert torch.equal(Square(queries=50)(access, x, Untargeted(y), threat, rng(4)), found)


def test_bad_arguments_are_named():
    for arguments, name in (({"queries": 0}, "queries"), ({"p_init": 0}, "p_init"), ({"p_init": 1.5}, "p_init")):
        with pytest.raises(ValueError, match=f"Expected `{name}`"):
            Square(**arguments)


@pytest.mark.parametrize(("norm", "power"), [("l2", 2), ("l1", 4)])
@pytest.mark.parametrize(("height", "width"), [(5, 5), (3, 7), (9, 5)])
def test_a_peak_falls_from_its_centre_as_equation_1_says(norm, power, height, width):
    """Andriushchenko et al. 2020, equation 1, pixel by pixel: the sum over k from 0 to M of 1 / (n + 1 - k) ** power."""
    n = max(height, width) // 2
    by_hand = torch.zeros(height, width, dtype=torch.float64)
    for r in range(height):
        for s in range(width):
            reach = n - max(abs(r - height // 2), abs(s - width // 2))
            by_hand[r, s] = sum((n + 1 - k) ** -power for k in range(reach + 1))
    found = _peak(height, width, torch.zeros(1, 1, 9, 9, dtype=torch.float64), ThreatModel(norm, 1.0))
    torch.testing.assert_close(found / found.max(), by_hand / by_hand.max())
    assert found.argmax() == (height // 2) * width + width // 2
