"""The majority vote: who wins, ties, what an attacker differentiates, and which bases there may be."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks.rng import ExampleRNG
from advbench.defenses.defended import Defended
from advbench.defenses.inference.vote import MeanAnswer, Vote, Voting


class Shaken(nn.Module):
    """Three logits, the first pixels, shaken by noise of deviation one."""

    def forward(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        return 3 * x.flatten(1)[:, :3] + rng.normal((3,), x.dtype)


class Said(nn.Module):
    """Answers the given logits, (passes, n, classes), one after the other."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        return self.logits.flatten(0, 1) + 0 * x.flatten(1)[:, :1]


def stream(n: int, seed: int = 0) -> ExampleRNG:
    return ExampleRNG.make(seed, "vote", torch.arange(n))


def counted(answers: list[int], means: list[float]) -> int:
    """The winner in plain Python: most votes, of equal ones the likelier."""
    votes = Counter(answers)
    return max(range(len(means)), key=lambda label: (votes[label], means[label]))


def test_the_class_with_most_votes_wins_and_ties_go_to_the_likelier():
    logits = 4 * torch.randn(5, 400, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = Voting(Said(logits), 5, stochastic=True)(torch.rand(400, 1, 2, 2, dtype=torch.float64), stream(400))
    answers, means = logits.argmax(dim=2), logits.softmax(dim=2).mean(dim=0)
    by_hand = [counted(answers[:, i].tolist(), means[i].tolist()) for i in range(400)]
    assert found.argmax(dim=1).tolist() == by_hand
    tied = [sorted(Counter(answers[:, i].tolist()).values())[-2:] == [2, 2] for i in range(400)]
    assert sum(tied) > 20
    assert sum(by_hand[i] != int(means[i].argmax()) for i in range(400)) > 5  # a vote is no mean prediction
    torch.testing.assert_close(found.exp().sum(dim=1), torch.ones(400, dtype=torch.float64))


def test_answers_of_one_vote_are_independent_draws_of_the_example():
    x = torch.full((4000, 1, 1, 3), 0.5, dtype=torch.float64)
    answers = Voting(Shaken(), 3, stochastic=True).answers(x, stream(4000)) - 1.5
    assert abs(float(answers.var()) - 1) < 0.05
    assert abs(float((answers[0] * answers[1]).mean())) < 4 / (12000**0.5)
    rows = torch.tensor([7, 3])
    alone = Voting(Shaken(), 3, stochastic=True).answers(x[rows], stream(4000).select(rows)) - 1.5
    torch.testing.assert_close(alone, answers[:, rows])


def test_a_vote_is_right_more_often_than_one_answer():
    """Of a class that is named with probability p the majority of nine is right with that of Binomial(9, p) > 4."""
    x = torch.zeros(20_000, 1, 1, 3, dtype=torch.float64)
    x[:, 0, 0, 0], x[:, 0, 0, 2] = 0.2, -9.0
    one = Shaken()(x, stream(20_000)).argmax(dim=1) == 0
    nine = Voting(Shaken(), 9, stochastic=True)(x, stream(20_000, seed=1)).argmax(dim=1) == 0
    p = float(torch.distributions.Normal(0.0, 2**0.5).cdf(torch.tensor(0.6, dtype=torch.float64)))
    majority = 1 - float(
        sum(torch.distributions.Binomial(9, torch.tensor(p)).log_prob(torch.tensor(float(k))).exp() for k in range(5))
    )
    assert abs(float(one.double().mean()) - p) < 0.015
    assert abs(float(nine.double().mean()) - majority) < 0.015


def test_an_attacker_has_the_vote_the_mean_answer_and_the_base():
    base = Defended(Shaken(), stochastic=True)
    voting = Vote(passes=3).wrap({"base": base})
    assert list(voting.surrogates) == ["faithful", "mean", "base"]
    assert voting.stochastic
    assert voting.surrogates["faithful"].model is voting.model
    assert voting.surrogates["faithful"].exact
    assert not voting.surrogates["mean"].exact
    assert voting.surrogates["base"].model is base.model


def test_the_mean_answer_has_the_gradient_of_the_mean_probability():
    x = torch.rand(6, 1, 1, 3, dtype=torch.float64, requires_grad=True)
    model = MeanAnswer(Shaken(), 3, stochastic=True)
    noise = model.answers(torch.zeros_like(x), stream(6)).detach()
    by_hand = (3 * x.flatten(1) + noise).softmax(dim=2).mean(dim=0).log()[:, 0]
    [wanted] = torch.autograd.grad(by_hand.sum(), x)
    [found] = torch.autograd.grad(model(x, stream(6))[:, 0].sum(), x)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("passes", [0, 2, -1])
def test_votes_are_odd(passes):
    with pytest.raises(ValueError, match="Expected `passes` to be odd"):
        Vote(passes=passes)


def test_a_base_that_draws_nothing_is_refused():
    with pytest.raises(ValueError, match="Expected a random base"):
        Vote().wrap({"base": Defended(nn.Flatten())})
