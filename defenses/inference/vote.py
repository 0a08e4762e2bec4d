"""The majority vote of several answers of a random model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advbench.attacks.rng import ExampleRNG
from advbench.defenses.defended import Defended, Surrogate
from advbench.defenses.inference.at_test_time import TestTimeDefense
from advbench.defenses.inference.composition import call, in_front_of
from advbench.defenses.inference.noise import mean_prediction, tiled


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote(TestTimeDefense):
    """The class that most of several fresh answers of a random model name, Cohen et al. 2019, arXiv:1902.02918, section 3.2.

    A defense of its own: it costs `passes` times as much as the model behind it, and its attacker attacks the vote. With
    noise at the input behind it, it is the classifier of randomised smoothing. Nothing is certified, and it never abstains.

    passes: answers that vote, an odd number. base: the spec of the random defense whose answers they are.
    """

    passes: int = 9
    base: str = "input-noise(passes=1)"

    def __post_init__(self) -> None:
        if self.passes < 1 or self.passes % 2 == 0:
            raise ValueError(f"Expected `passes` to be odd and >= 1, got {self.passes}")

    def wrap(self, inputs: Mapping[str, Defended]) -> Defended:
        """The vote over ``inputs["base"]``; beside the surrogates of a wrapper there is ``mean``, the mean prediction of the
        same answers, whose gradient does not depend on who wins. ValueError for a base that draws nothing.
        """
        base = inputs["base"]
        if not base.stochastic:
            raise ValueError(
                "Expected a random base, whose answers differ, got one that draws nothing: a vote changes nothing"
            )
        voting = in_front_of(base, lambda model, random: Voting(model, self.passes, stochastic=random), stochastic=True)
        first = next(iter(base.surrogates.values()))
        mean = Surrogate(MeanAnswer(first.model, self.passes, stochastic=first.stochastic), stochastic=True, exact=False)
        faithful, *others = voting.surrogates.items()
        return Defended(voting.model, stochastic=True, surrogates=dict((faithful, ("mean", mean), *others)))


class Answering(nn.Module):
    """Several answers of a model, each with random numbers of its own.

    base: images (n, c, h, w) -> logits (n, classes). stochastic: whether it takes an rng; surrogates of a random model need
    not, and then answer alike.
    """

    def __init__(self, base: nn.Module, passes: int, *, stochastic: bool) -> None:
        super().__init__()
        self.base = base
        self.passes = passes
        self.stochastic = stochastic

    def extra_repr(self) -> str:
        """What the structure is, beside its part."""
        return f"passes={self.passes}"

    def answers(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        """The logits of all passes, (passes, n, classes), from one forward of n * passes images."""
        copies = tiled(rng.fork("vote"), self.passes)
        return call(self.base, x.repeat(self.passes, 1, 1, 1), copies, self.stochastic).view(self.passes, len(x), -1)


class Voting(Answering):
    """Logarithms of the votes by class, a tie decided by the mean probability.

    With v votes and a mean probability p, the answer is log((v + p) / (passes + 1)): the order is that of the votes, as p
    counts less than one of them, and it follows an attacker's image smoothly through p.
    """

    def forward(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        """Logits (n, classes), whose softmax sums the votes and the mean prediction."""
        logits = self.answers(x, rng)
        votes = nn.functional.one_hot(logits.detach().argmax(dim=2), logits.shape[2]).sum(dim=0)
        return ((votes + mean_prediction(logits).exp()) / (self.passes + 1)).clamp(min=torch.finfo(x.dtype).tiny).log()


class MeanAnswer(Answering):
    """The mean prediction of the answers that vote."""

    def forward(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        """Log mean probabilities, (n, classes)."""
        return mean_prediction(self.answers(x, rng))
