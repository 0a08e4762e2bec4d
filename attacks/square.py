"""Square Attack: random search over squares, from scores alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self, TypeAlias

import torch
from torch import Tensor

from advbench.attacks import balls
from advbench.attacks.access import Access, ScoreBased, WhiteBox
from advbench.attacks.attack import check_norm, check_positive
from advbench.attacks.capabilities import SCORES, Passes, cut
from advbench.attacks.iterates import LogitsT, Search, Stop, look, settle
from advbench.attacks.losses import margin
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Goal, ThreatModel

Proposal: TypeAlias = Callable[[Tensor, Tensor, ThreatModel, int, Tensor], Tensor]
"""(best points, clean images, threat, side of the squares, random words (m, words)) -> new points, (m, c, h, w)."""

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""The queries, of 10,000, after which the squares' share of the image halves (section 3 of the paper)."""

_BLOCK = 64
"""Queries whose random words are drawn at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Square:
    """Square Attack, random search with squares at random places (Andriushchenko et al. 2020, arXiv:1912.00049).

    queries: of each image. p_init: the share of the image that the first squares cover; it halves nine times until 10,000
    queries. rescale: run through that schedule for any number of queries, else stay on its first queries. stop: whether
    an example is left alone after its first success; inputs that are already misclassified are returned unchanged, which
    costs one query more. A new point is kept where its margin is higher or where it achieves the goal.

    linf and l2 follow the paper's algorithms 2 and 3; l1, which the paper lacks, follows the authors' AutoAttack: algorithm
    3 with lengths in l1, and projected. Every example has squares of its own.
    """

    queries: int = 5000
    p_init: float = 0.8
    rescale: bool = True
    stop: Stop = "success"

    norms: ClassVar[frozenset[str]] = frozenset({"linf", "l2", "l1"})
    minimal_norm: ClassVar[bool] = False
    knowledge: ClassVar[type[Access]] = ScoreBased
    targeted: ClassVar[bool] = True
    family: ClassVar[str] = SCORES

    def __post_init__(self) -> None:
        check_positive(self, "queries", "p_init")
        if self.p_init > 1:
            raise ValueError(f"Expected `p_init` in (0, 1], got {self.p_init}")

    def passes(self, threat: ThreatModel, classes: int) -> Passes:  # noqa: ARG002
        """All queries, and one of the clean images where they are looked at."""
        return Passes(self.queries + (self.stop == "success"))

    def short(self) -> Self:
        """A cheap setting, for tests."""
        return cut(self, queries=40)

    def __call__(self, access: ScoreBased | WhiteBox, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
        """Return the best point of each image, shape (n, c, h, w), inside the ball around `x` and the box."""
        check_norm(self, threat)
        search = Search(access, x, goal, rng, self.stop)
        if search and self.stop == "success":
            look(search, search.x, margin)
        self.begin(search, threat)
        self.ask(search, threat, range(1, self.queries))
        return settle(search, margin)

    def begin(self, search: Search[LogitsT], threat: ThreatModel) -> None:
        """The first query, stripes or tiles."""
        if search:
            start = _stripes if threat.norm == "linf" else _tiles
            look(search, start(search.x, threat, search.rng.fork("start")), margin)

    def ask(self, search: Search[LogitsT], threat: ThreatModel, numbers: range) -> None:
        """The numbered queries, from 1, each around the best point that the search holds."""
        propose = _square if threat.norm == "linf" else _window
        for first in range(numbers.start, numbers.stop, _BLOCK):
            self._block(search, threat, propose, range(first, min(first + _BLOCK, numbers.stop)))

    def _block(self, search: Search[LogitsT], threat: ThreatModel, propose: Proposal, numbers: range) -> None:
        if not search:
            return
        words = _words(search.rng, numbers, 5 + -(-search.x.shape[1] // 32))
        for number, query in enumerate(numbers):
            best = search.best.x_adv[search.rows]
            side = self._side(query, search.x)
            look(search, propose(best, search.x, threat, side, words[:, number]), margin)
            (words,) = search.keep(words)
            if not search:
                return

    def _side(self, query: int, x: Tensor) -> int:
        """The side of the squares at a query, from 1."""
        # The paper's schedule is for 10,000 queries. It is compressed to the queries at hand, since few of them would
        # otherwise never see small squares.
        done = int((query - 1) / self.queries * 10_000) if self.rescale else query - 1
        share = self.p_init * 0.5 ** sum(done > halving for halving in _HALVINGS)
        height, width = x.shape[2:]
        return min(max(round(math.sqrt(share * height * width)), 1), height, width)


def _words(rng: ExampleRNG, numbers: range, count: int) -> Tensor:
    """Random words of 32 bits of the numbered draws, shape (n, numbers, count), int64."""
    n, device = len(rng.index), rng.index.device
    draws = torch.arange(numbers.start, numbers.stop, device=device).repeat(n)
    rows = torch.arange(n, device=device).repeat_interleave(len(numbers))
    return rng.select(rows).at(draws).bits(count).view(n, len(numbers), count)


def _signs(words: Tensor, channels: int) -> Tensor:
    """A random sign for each channel, from the bits of `words`, shape (m, words): (m, channels, 1, 1), int64."""
    bits = words.unsqueeze(2) >> torch.arange(32, device=words.device) & 1
    return 1 - 2 * bits.flatten(1)[:, :channels, None, None]


def _corner(word: Tensor, side: int, length: int) -> Tensor:
    """A random place, shape (m,), for a square along an edge of the image of that length."""
    return word * (length - side + 1) >> 32


def _mask(corner: Tensor, side: int, length: int) -> Tensor:
    """The places along one edge that a square covers, shape (m, length), bool."""
    places = torch.arange(length, device=corner.device) - corner.unsqueeze(1)
    return (places >= 0) & (places < side)


def _cover(top: Tensor, left: Tensor, side: int, x: Tensor) -> Tensor:
    """The pixels that a square covers, shape (m, 1, h, w), bool."""
    height, width = x.shape[2:]
    return (_mask(top, side, height).unsqueeze(2) & _mask(left, side, width).unsqueeze(1)).unsqueeze(1)


def _stripes(x: Tensor, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
    """Vertical stripes, one pixel wide, of random corners of the ball."""
    channels, _, width = x.shape[1:]
    signs = 1 - 2 * rng.integers(2, (channels, 1, width))
    return balls.project(x + threat.epsilon_or_inf * signs, x, threat)


def _square(best: Tensor, x: Tensor, threat: ThreatModel, side: int, words: Tensor) -> Tensor:
    """Algorithm 2: a square in which every channel moves to one face of the ball."""
    channels, height, width = x.shape[1:]
    inside = _cover(_corner(words[:, 0], side, height), _corner(words[:, 1], side, width), side, x)
    signs = _signs(words[:, 5:], channels)
    return balls.project((x + threat.epsilon_or_inf * signs).where(inside, best), x, threat)


def _tiles(x: Tensor, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
    """The image tiled, five tiles high, with bumps of random signs and directions."""
    channels, height, width = x.shape[1:]
    side = max(min(height, width) // 5, 1)
    down, across = height // side, width // side
    signs = 1 - 2 * rng.integers(2, (channels, down, across))
    flips = rng.fork("flip").integers(2, (1, down, across)) == 1
    signs, flips = (one.repeat_interleave(side, 2).repeat_interleave(side, 3) for one in (signs, flips))
    bump = _bump(side, x, threat)
    tiled = bump.T.repeat(down, across).where(flips, bump.repeat(down, across)) * signs
    top, left = (height - side * down) // 2, (width - side * across) // 2
    delta = torch.zeros_like(x)
    delta[:, :, top : top + side * down, left : left + side * across] = tiled
    if threat.norm == "l2":
        delta = threat.epsilon_or_inf * delta / balls.per_example(balls.distance(delta, "l2"), x)
    return balls.project(x + delta, x, threat)


def _window(best: Tensor, x: Tensor, threat: ThreatModel, side: int, words: Tensor) -> Tensor:
    """Algorithm 3: what a second window had, and what is left of the budget, goes to a bump in the first."""
    channels, height, width = x.shape[1:]
    # Odd and at least 3, so that a bump has a centre and two peaks. The length that two windows held is spent in one: the
    # other is emptied, so that the perturbation keeps its length while its mass moves.
    side = min(max(side, 3) | 1, height, width)
    top, left, other_top, other_left = (
        _corner(words[:, column], side, length) for column, length in enumerate((height, width, height, width))
    )
    delta = best - x
    other = _cover(other_top, other_left, side, x)
    budget = _budget(delta, _cover(top, left, side, x) | other, threat)
    bump = _bump(side, x, threat)
    bump = bump.T.where((words[:, 4] & 1 == 1)[:, None, None, None], bump) * _signs(words[:, 5:], channels)
    place = _place(top, left, side, x)
    moved = bump + _unit(delta[place], threat)
    delta = delta.masked_fill(other, 0)
    delta[place] = budget * _unit(moved, threat)
    return balls.project(x + delta, x, threat)


def _place(top: Tensor, left: Tensor, side: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The index of the windows with the given corners, in images of the shape of `x`."""
    along = torch.arange(side, device=x.device)
    rows, channels = (torch.arange(length, device=x.device) for length in x.shape[:2])
    return (
        rows[:, None, None, None],
        channels[None, :, None, None],
        (top.unsqueeze(1) + along)[:, None, :, None],
        (left.unsqueeze(1) + along)[:, None, None, :],
    )


def _length(delta: Tensor, threat: ThreatModel) -> Tensor:
    """The length of each channel, shape (m, c, 1, 1)."""
    order = 2 if threat.norm == "l2" else 1
    length: Tensor = torch.linalg.vector_norm(delta, ord=order, dim=(2, 3), keepdim=True)
    return length


def _unit(delta: Tensor, threat: ThreatModel) -> Tensor:
    """Each channel at unit length, zeros as they are."""
    length = _length(delta, threat)
    return delta / length.where(length > 0, 1)


def _budget(delta: Tensor, windows: Tensor, threat: ThreatModel) -> Tensor:
    """The length that each channel's bump may have, (m, c, 1, 1): what the windows hold and a share of what is unused.

    In l1 as much for every channel, of which the projection leaves the largest values.
    """
    channels = delta.shape[1]
    held = _length(delta.where(windows, 0), threat)
    used = balls.per_example(balls.distance(delta, threat.norm), delta)
    if threat.norm == "l2":
        return ((threat.epsilon_or_inf**2 - used.square()).clamp(min=0) / channels + held.square()).sqrt()
    return (threat.epsilon_or_inf - used).clamp(min=0) + held * channels


def _bump(side: int, x: Tensor, threat: ThreatModel) -> Tensor:
    """The paper's equation 2: a positive and a negative peak, one above the other, unit length, (side, side)."""
    upper = side // 2
    return _normalised(torch.cat((_peak(upper, side, x, threat), -_peak(side - upper, side, x, threat))), threat)


def _peak(height: int, width: int, x: Tensor, threat: ThreatModel) -> Tensor:
    """The paper's equation 1: sums of 1/k^2 (l1: 1/k^4) over the rectangles that hold a pixel; unit length."""
    rows, columns = (torch.arange(length, device=x.device) - length // 2 for length in (height, width))
    ring = rows.abs().unsqueeze(1).maximum(columns.abs())
    terms = torch.arange(1, max(height, width) // 2 + 2, device=x.device, dtype=x.dtype) ** (
        -2 if threat.norm == "l2" else -4
    )
    return _normalised(terms.flip(0).cumsum(0).flip(0)[ring], threat)


def _normalised(peak: Tensor, threat: ThreatModel) -> Tensor:
    return _unit(peak[None, None], threat)[0, 0]
