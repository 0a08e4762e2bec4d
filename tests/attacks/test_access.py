from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks.access import DecisionBased, DetectorView, ScoreBased, WhiteBox, frozen, in_precision
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Targeted, Untargeted, cross_entropy


class NoisySlope(nn.Module):
    """Logits (s * a.x, 0) with a slope s = 3 + u per call, u uniform in [-1, 1): the mean gradient is that of slope 3."""

    def __init__(self, direction: Tensor) -> None:
        super().__init__()
        self.direction = nn.Parameter(direction)
        self.seen: list[tuple[list[int], list[int]]] = []

    def forward(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        self.seen.append((rng.index.tolist(), rng.draw.tolist()))
        slope = 2 + 2 * rng.uniform((), x.dtype)
        score = slope * (x.flatten(1) @ self.direction)
        return torch.stack((score, torch.zeros_like(score)), dim=1)


def plain_score(logits: Tensor, goal: Untargeted) -> Tensor:
    return logits[:, 0]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6, 3))


def images(n: int) -> Tensor:
    return torch.rand(n, 1, 2, 2, generator=torch.Generator().manual_seed(1))


def rng(n: int) -> ExampleRNG:
    return ExampleRNG.make(0, "attack", torch.arange(n) + 10)


def state(model: nn.Module) -> tuple[list[bool], list[bool], list[Tensor], list[Tensor | None]]:
    return (
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [value.clone() for value in model.state_dict().values()],
        [parameter.grad for parameter in model.parameters()],
    )


def assert_same_state(before, after):
    assert before[:2] == after[:2]
    assert all(torch.equal(one, other) for one, other in zip(before[2], after[2], strict=True))
    assert before[3] == after[3]


def test_model_comes_back_as_it_went_in_even_after_an_exception():
    model = net()
    model[2].eval()  # a module whose mode differs from the rest
    model[1].bias.requires_grad_(False)
    before = state(model)
    with WhiteBox(model, rng(5)) as access:
        assert not any(module.training for module in model.modules())
        access.loss_gradient(images(5), Untargeted(torch.zeros(5, dtype=torch.int64)), cross_entropy)
        access.pullback(images(5))[1](torch.ones(2, 5, 3))
    assert_same_state(before, state(model))
    with pytest.raises(KeyError), WhiteBox(model, rng(5)):
        raise KeyError
    assert_same_state(before, state(model))
    with pytest.raises(KeyError), frozen(model):
        raise KeyError
    assert_same_state(before, state(model))


def test_an_access_can_be_entered_again():
    model = net()
    access = WhiteBox(model, rng(2))
    for _ in range(2):
        with access:
            assert not model.training
        assert model.training


def test_passes_are_counted_for_the_examples_that_were_asked():
    goal = Untargeted(torch.zeros(4, dtype=torch.int64))
    with WhiteBox(net(), rng(4)) as access:
        access.logits(images(4))
        some = access.select(torch.tensor([False, True, True, False]))
        some.loss_gradient(images(2), goal.select(torch.tensor([1, 2])), cross_entropy)
        _, pull = some.select(torch.tensor([1])).pullback(images(1))
        pull(torch.ones(3, 1, 3))
        pull(torch.ones(2, 1, 3))
    assert access.ledger.forwards.tolist() == [1, 2, 3, 1]
    assert access.ledger.backwards.tolist() == [0, 1, 6, 0]
    assert access.ledger.queries.tolist() == [0, 0, 0, 0]
    assert some.index.tolist() == [11, 12]


def test_an_example_that_stands_twice_in_the_batch_is_counted_twice():
    with WhiteBox(net(), rng(2)) as access:
        access.select(torch.tensor([1, 1, 0])).logits(images(3))
    assert access.ledger.forwards.tolist() == [1, 2]


def test_an_uncounted_pass_gives_the_same_logits_for_any_number_of_images_and_counts_nothing():
    with WhiteBox(net(), rng(3)) as access:
        found = access.uncounted(images(5), None)
        assert access.ledger.forwards.tolist() == [0, 0, 0]
        torch.testing.assert_close(access.logits(images(5)[:3]), found[:3], rtol=0, atol=1e-6)
    noisy = NoisySlope(torch.ones(4))
    with WhiteBox(noisy, rng(3), stochastic=True) as access:
        first = access.uncounted(images(3), rng(3))
        assert torch.equal(access.logits(images(3)), first)
    assert access.ledger.forwards.tolist() == [1, 1, 1]
    detector = DetectorView(AlwaysRejects(), torch.tensor([2, 0, 1]))
    with WhiteBox(net(), rng(3), detector=detector) as access:
        assert access.uncounted(images(3).repeat(2, 1, 1, 1), None).argmax(dim=1).tolist() == [2, 0, 1, 2, 0, 1]


class AlwaysRejects(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1 + 0 * x.flatten(1).sum(dim=1)


def test_oracles_count_queries():
    with ScoreBased(net(), rng(3)) as scores:
        scores.logits(images(3))
        scores.select(torch.tensor([2])).logits(images(1))
    assert scores.ledger.queries.tolist() == [1, 1, 2]
    with DecisionBased(net(), rng(3)) as labels:
        assert labels.labels(images(3)).dtype == torch.int64
    assert labels.ledger.queries.tolist() == [1, 1, 1]
    noisy = NoisySlope(torch.ones(4))
    with DecisionBased(noisy, rng(3), stochastic=True, draws=4) as labels:
        labels.labels(images(3))
    assert labels.ledger.queries.tolist() == [4, 4, 4]


def test_gradient_is_that_of_each_examples_loss():
    x, goal = images(5).double(), Untargeted(torch.tensor([0, 1, 2, 0, 1]))
    model = net().double()
    with WhiteBox(model, rng(5)) as access:
        found = access.loss_gradient(x, goal, cross_entropy)
        for row in range(5):
            alone = x[row : row + 1].clone().requires_grad_()
            loss = nn.functional.cross_entropy(model(alone), goal.y[row : row + 1])
            torch.testing.assert_close(found.gradient[row : row + 1], torch.autograd.grad(loss, alone)[0])
            torch.testing.assert_close(found.loss[row], loss.detach())
        torch.testing.assert_close(found.logits, model(x))
    assert not found.loss.requires_grad
    assert not found.logits.requires_grad


def test_pullback_multiplies_with_the_jacobian():
    x, model = images(3).double(), net().double()
    cotangents = torch.randn(4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with WhiteBox(model, rng(3)) as access:
        logits, pull = access.pullback(x)
        found = pull(cotangents)
        jacobian = torch.autograd.functional.jacobian(lambda each: model(each).sum(dim=0), x)  # (classes, n, 1, 2, 2)
        torch.testing.assert_close(logits, model(x))
    torch.testing.assert_close(found, torch.einsum("mnk,knchw->mnchw", cotangents, jacobian))


def test_eot_averages_gradients_with_their_sign_and_magnitude():
    direction = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)
    x = images(2).double()
    goal = Untargeted(torch.zeros(2, dtype=torch.int64))
    draws = 4000
    with WhiteBox(NoisySlope(direction), rng(2), stochastic=True, draws=draws) as access:
        found = access.loss_gradient(x, goal, plain_score)
    expected = (3 * direction).view(1, 1, 2, 2)
    # The slope's standard error over 4000 draws is 0.009.
    assert ((found.gradient - expected).abs() <= 0.04 * direction.abs().view(1, 1, 2, 2) + 1e-12).all()
    torch.testing.assert_close(found.logits[:, 0], found.loss)
    torch.testing.assert_close(found.loss, (found.gradient * x).flatten(1).sum(dim=1))
    assert access.ledger.forwards.tolist() == [draws] * 2
    assert access.ledger.backwards.tolist() == [draws] * 2


def test_eot_of_the_loss_and_not_of_the_logits():
    x, goal = images(1).double() + 1, Untargeted(torch.zeros(1, dtype=torch.int64))
    model = NoisySlope(torch.ones(4, dtype=torch.float64))
    with WhiteBox(model, rng(1), stochastic=True, draws=5) as access:
        found = access.loss_gradient(x, goal, cross_entropy)
    single = []
    for draw in range(5):
        each = x.clone().requires_grad_()
        loss = nn.functional.cross_entropy(model(each, rng(1).at(draw)), goal.y)
        single.append((loss.detach(), torch.autograd.grad(loss, each)[0]))
    torch.testing.assert_close(found.loss[0], torch.stack([loss for loss, _ in single]).mean())
    torch.testing.assert_close(found.gradient, torch.stack([gradient for _, gradient in single]).mean(dim=0))


def test_pullback_of_a_stochastic_model_is_the_mean_of_its_draws():
    model = NoisySlope(torch.ones(4, dtype=torch.float64))
    with WhiteBox(model, rng(2), stochastic=True, draws=3) as access:
        logits, pull = access.pullback(images(2).double())
        gradient = pull(torch.tensor([[[1.0, 0.0]] * 2], dtype=torch.float64))[0]
    slopes = torch.stack([2 + 2 * rng(2).at(draw).uniform((), torch.float64) for draw in range(3)]).mean(dim=0)
    torch.testing.assert_close(gradient, slopes.view(2, 1, 1, 1).expand(2, 1, 2, 2))
    torch.testing.assert_close(logits[:, 0], slopes * images(2).double().flatten(1).sum(dim=1))
    assert access.ledger.backwards.tolist() == [3, 3]


def test_every_pass_of_a_stochastic_model_is_a_fresh_draw_of_each_example():
    model = NoisySlope(torch.ones(4))
    with WhiteBox(model, rng(3), stochastic=True, draws=2) as access:
        access.logits(images(3))
        access.select(torch.tensor([2])).logits(images(1))
        access.logits(images(3))
    asked = [pair for index, draw in model.seen for pair in zip(index, draw, strict=True)]
    assert len(set(asked)) == len(asked) == 6 + 2 + 6
    assert [draw for index, draw in asked if index == 12] == [0, 1, 2, 3, 4, 5]
    assert [draw for index, draw in asked if index == 10] == [0, 1, 2, 3]


def test_answers_of_a_stochastic_model_do_not_depend_on_the_batch():
    x = images(4)
    with ScoreBased(NoisySlope(torch.ones(4)), rng(4), stochastic=True, draws=3) as together:
        expected = together.logits(x)
    for row in range(4):
        with ScoreBased(NoisySlope(torch.ones(4)), rng(4).select(torch.tensor([row])), stochastic=True, draws=3) as alone:
            torch.testing.assert_close(alone.logits(x[row : row + 1]), expected[row : row + 1])


def test_a_deterministic_model_is_asked_once_whatever_the_draws():
    with WhiteBox(net(), rng(2), draws=7) as access:
        access.logits(images(2))
    assert access.ledger.forwards.tolist() == [1, 1]


def test_misuse_is_named():
    with pytest.raises(ValueError, match="Expected `draws` >= 1"):
        WhiteBox(net(), rng(2), draws=0)
    with pytest.raises(ValueError, match="Expected 2 images"), WhiteBox(net(), rng(2)) as access:
        access.logits(images(3))


def test_a_model_without_a_gradient_is_named():
    class Rounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.one_hot(x.flatten(1).argmax(dim=1), 4).float()

    goal = Targeted(torch.zeros(2, dtype=torch.int64), torch.ones(2, dtype=torch.int64))
    with WhiteBox(Rounded(), rng(2)) as access:
        with pytest.raises(RuntimeError, match="Expected logits that depend on the images differentiably"):
            access.loss_gradient(images(2), goal, cross_entropy)
        with pytest.raises(RuntimeError, match="Expected logits that depend on the images differentiably"):
            access.pullback(images(2))
        assert access.logits(images(2)).shape == (2, 4)


def test_an_attribute_of_a_model_does_not_tell_it_which_image_it_is_asked_about():
    class Curious(nn.Module):
        per_example = True

        def forward(self, x: Tensor, *told: object) -> Tensor:
            assert not told
            return x.flatten(1)[:, :2]

    index = torch.arange(3)
    with WhiteBox(Curious(), ExampleRNG.make(0, "oracle", index)) as access:
        assert access.logits(torch.zeros(3, 1, 2, 2)).shape == (3, 2)


@pytest.mark.parametrize("given", [torch.float16, torch.float32, torch.float64])
def test_logits_come_in_the_precision_of_the_images(given):
    logits = torch.tensor([[1.0, 3.0]], dtype=given)
    found = in_precision(logits, torch.float32)
    assert found.dtype == torch.float32
    assert float(found.diff()) == 2.0
    assert (found is logits) == (given == torch.float32)
