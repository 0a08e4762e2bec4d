from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks.access import WhiteBox
from advbench.attacks.iterates import BestSoFar, Contenders, Search, look, settle
from advbench.attacks.losses import margin
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Untargeted


class Identity(nn.Module):
    """Logits are the first two pixels."""

    def forward(self, x: Tensor, rng: ExampleRNG | None = None) -> Tensor:
        return x.flatten(1)[:, :2]


def image(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, 1, 2).contiguous()


def flags(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)


def test_a_success_never_gives_way_to_a_higher_loss():
    best = BestSoFar(image(0, 0, 0, 0))
    best.update(image(1, 1, 1, 1), flags(1, 1, 0, 0), torch.tensor([1.0, 1.0, 1.0, 1.0]))
    best.update(image(2, 2, 2, 2), flags(0, 1, 0, 1), torch.tensor([9.0, 2.0, 0.5, 0.1]))
    assert best.x_adv[:, 0, 0, 0].tolist() == [1, 2, 1, 2]
    assert best.achieved.tolist() == [True, True, False, True]
    assert torch.equal(best.loss, torch.tensor([1.0, 2.0, 1.0, 0.1]))


def test_nothing_better_leaves_the_clean_image_and_nan_is_never_kept():
    x = image(5, 6)
    best = BestSoFar(x)
    best.update(image(1, 1), flags(1, 0), torch.tensor([torch.nan, torch.nan]))
    assert torch.equal(best.x_adv, x)
    best.update(image(2, 2), flags(0, 0), torch.tensor([-3.0, torch.nan]))
    best.update(image(3, 3), flags(0, 0), torch.tensor([-3.0, -1e30]))
    assert best.x_adv[:, 0, 0, 0].tolist() == [2, 3]
    assert x[:, 0, 0, 0].tolist() == [5, 6]


def test_updates_reach_the_given_rows():
    best = BestSoFar(image(0, 0, 0))
    best.update(image(7, 8), flags(0, 1), torch.tensor([1.0, 1.0]), torch.tensor([2, 0]))
    assert best.x_adv[:, 0, 0, 0].tolist() == [8, 0, 7]
    assert best.achieved.tolist() == [True, False, False]


def search_of(x: Tensor, stop: str, stochastic: bool = False) -> Search[WhiteBox]:
    rng = ExampleRNG.make(0, "attack", torch.arange(len(x)) + 100)
    access = WhiteBox(Identity(), rng, stochastic=stochastic)
    return Search(access, x, Untargeted(torch.arange(len(x)) % 2), rng, stop)


def test_broken_examples_leave_with_everything_that_is_theirs():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [3.0, 0.0]]).view(5, 1, 1, 2)
    search = search_of(x, "success")  # labels 0 1 0 1 0: rows 1 and 2 are wrong
    look(search, x, margin)
    assert len(search) == 3
    assert search.rows.tolist() == [0, 3, 4]
    assert search.access.index.tolist() == search.rng.index.tolist() == [100, 103, 104]
    assert search.goal.y.tolist() == [0, 1, 0]
    assert torch.equal(search.x, x[[0, 3, 4]])
    momentum, count = search.keep(x * 2, torch.arange(5))
    assert torch.equal(momentum, x[[0, 3, 4]] * 2)
    assert count.tolist() == [0, 3, 4]
    look(search, search.x.flip(3), margin)
    assert not search
    assert search.keep(torch.zeros(3, 1))[0].shape == (0, 1)
    assert search.best.achieved.all()
    assert torch.equal(search.best.x_adv, torch.where(flags(1, 0, 0, 1, 1).view(5, 1, 1, 1), x.flip(3), x))
    look(search, search.x, margin)  # nobody is asked any more
    access_counts = search.access.ledger.forwards.tolist()
    assert access_counts == [2, 1, 1, 2, 2]


def test_nobody_leaves_where_the_attack_never_stops_or_the_model_is_stochastic():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).view(2, 1, 1, 2)
    for search in (search_of(x, "never"), search_of(x, "success", stochastic=True)):
        look(search, x, margin)
        assert search.rows.tolist() == [0, 1]
        assert search.best.achieved.tolist() == [False, True]
        assert search.keep(x)[0] is x


def test_a_success_out_of_bounds_is_none():
    x = torch.tensor([[0.0, 1.0]]).view(1, 1, 1, 2)
    search = search_of(x, "success")
    logits = Identity()(x)
    search.record(x, logits, margin(logits, search.goal), within=flags(0))
    assert search.rows.tolist() == [0]
    assert not search.best.achieved.any()


class Wavering(nn.Module):
    """Class 1 leads by the first pixel, give or take a normal number times the second; the label of the images is 0."""

    def forward(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        mean, width = x[:, 0, 0, 0], x[:, 0, 0, 1]
        lead = mean + width * rng.normal((), x.dtype)
        return torch.stack((-lead, lead), dim=1) / 2


def wavering_search(n: int, draws: int = 1) -> Search[WhiteBox]:
    rng = ExampleRNG.make(0, "attack", torch.arange(n))
    access = WhiteBox(Wavering(), rng, stochastic=True, draws=draws)
    return Search(access, torch.zeros(n, 1, 1, 2), Untargeted(torch.zeros(n, dtype=torch.int64)), rng)


def at(search: Search[WhiteBox], mean: float, width: float) -> Tensor:
    return torch.tensor([mean, width]).expand_as(search.x)


def test_of_a_random_model_the_strongest_iterate_is_kept_and_not_the_luckiest():
    """One iterate fools the model on nearly every draw, and after it come five that fool it on three of ten."""
    search = wavering_search(500)
    look(search, at(search, 0.3, 0.1), margin)
    for _ in range(5):
        look(search, at(search, -0.5, 1.0), margin)
    luckiest = search.best.x_adv[:, 0, 0, 0]
    assert (luckiest < 0).float().mean() > 0.6
    assert search.best.loss.mean() > 0.6
    strongest = settle(search, margin)
    assert (strongest[:, 0, 0, 0] < 0).float().mean() < 0.15
    assert strongest is search.best.x_adv
    # What stands beside it is no longer the luck of one draw.
    right = strongest[:, 0, 0, 0] > 0
    assert search.best.loss[right].mean() == pytest.approx(0.3, abs=0.02)


def test_the_last_iterate_is_a_contender_however_unlucky_it_was():
    search = wavering_search(50)
    for _ in range(40):
        look(search, at(search, -0.5, 1.0), margin)
    look(search, at(search, 0.3, 0.1), margin)
    assert (settle(search, margin)[:, 0, 0, 0] > 0).float().mean() > 0.9


def test_contenders_cost_eight_forwards_each_or_as_many_as_are_averaged():
    for draws, expected in ((1, 8), (20, 20)):
        search = wavering_search(3, draws)
        look(search, at(search, 0.1, 0.1), margin)
        before = search.access.ledger.forwards.clone()
        settle(search, margin)
        assert (search.access.ledger.forwards - before).tolist() == [4 * expected] * 3


def test_settling_gives_every_example_what_it_gets_alone():
    def settled(index: Tensor) -> Tensor:
        rng = ExampleRNG.make(0, "attack", index)
        access = WhiteBox(Wavering(), rng, stochastic=True)
        search = Search(access, torch.zeros(len(index), 1, 1, 2), Untargeted(torch.zeros_like(index)), rng)
        for mean in (-0.2, 0.0, 0.1, 0.05):
            look(search, at(search, mean, 0.5), margin)
        return settle(search, margin)

    together = settled(torch.arange(20))
    assert len(together.unique()) > 2
    assert torch.equal(together[[3, 17]], settled(torch.tensor([3, 17])))


def test_contenders_are_the_best_by_success_and_loss():
    x = image(0, 0)
    contenders = Contenders(x, places=2)
    for value, achieved, loss in ((1, 0, 5.0), (2, 1, 1.0), (3, 1, torch.nan), (4, 0, 9.0), (5, 1, 0.5), (6, 0, 99.0)):
        contenders.update(image(value, value), flags(achieved, 0), torch.tensor([loss, loss]))
    assert sorted(contenders.x_adv[:, 0, 0, 0, 0].tolist()) == [2, 5]
    assert sorted(contenders.x_adv[:, 1, 0, 0, 0].tolist()) == [4, 6]
    assert contenders.latest[:, 0, 0, 0].tolist() == [6, 6]


def test_a_model_without_noise_has_nothing_to_settle():
    search = search_of(image(1.0, 1.0), "never")
    look(search, search.x, margin)
    before = search.access.ledger.forwards.clone()
    assert settle(search, margin) is search.best.x_adv
    assert torch.equal(search.access.ledger.forwards, before)
    assert search.contenders is None
