"""Limited-memory quasi-Newton minimisation between bounds, for many problems at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

Objective: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(points (m, d), which problems they belong to (m,) int64) -> values (m,) and gradients (m, d)."""

_SUFFICIENT = 1e-4
_FLAT = 1e-5
_PROGRESS = 2.2e-9
_SHORTEST = 1e-6
_CURVATURE = 1e-10


def minimise(objective: Objective, start: Tensor, lower: Tensor, upper: Tensor, *, steps: int, history: int = 10) -> Tensor:
    """Minimise n problems, each by itself, with the bounds of each variable; returns the best points, shape (n, d).

    L-BFGS with two-metric projection (Bertsekas 1982, doi:10.1137/0320018), on the problem of L-BFGS-B (Byrd et al. 1995,
    doi:10.1137/0916069): variables that rest on a bound and would leave it are held, the others take the quasi-Newton step
    of their own curvature pairs, the result is clipped to the bounds. Each problem has its own history, its own backtracking
    line search and its own end, and in every step each one has one value and gradient taken: of a new point, or of a
    shorter step from the last one.

    A problem ends, by the rules and tolerances of SciPy's L-BFGS-B, where the projected gradient is at most 1e-5 in every
    component, or a step gains less than 2.2e-9 of the value (but no less than the dtype resolves), or where even the
    steepest direction gains nothing.

    start, lower, upper: shape (n, d). steps: evaluations of each problem at most. history: pairs that are remembered.
    """
    rows, found = torch.arange(len(start), device=start.device), start.clone()
    point = trial = start
    value, gradient = torch.full_like(start[:, 0], torch.inf), torch.zeros_like(start)
    moves = turns = start.new_zeros(history, *start.shape)
    direction, length = torch.zeros_like(start), torch.ones_like(value)
    least = max(_PROGRESS, torch.finfo(start.dtype).eps)
    for _ in range(steps):
        if not len(rows):
            break
        ahead, slopes = objective(trial, rows)
        move = trial - point
        slope = (gradient * move).sum(dim=1).clamp(max=0)
        taken = ahead <= value + _SUFFICIENT * slope
        small = value - ahead <= least * ahead.abs().clamp(min=1)
        # A rejected step is shortened to the minimum of the parabola through the two values and the slope.
        shorter = (-slope / (2 * (ahead - value - slope))).nan_to_num(0.1).clamp(0.1, 0.5) * length
        # Where nothing is gained along the quasi-Newton direction the history is forgotten.
        stuck = ~taken & (shorter < _SHORTEST)
        alone = ~moves.flatten(2).any(dim=2).any(dim=0)
        moves = _pushed(moves, move, taken).masked_fill(stuck.view(1, -1, 1), 0)
        turns = _pushed(turns, slopes - gradient, taken).masked_fill(stuck.view(1, -1, 1), 0)
        point, gradient = trial.where(taken.unsqueeze(1), point), slopes.where(taken.unsqueeze(1), gradient)
        value = ahead.where(taken, value)
        free = ~(((point <= lower) & (gradient > 0)) | ((point >= upper) & (gradient < 0)))
        renewed = taken | stuck
        direction = torch.where(renewed.unsqueeze(1), _direction(gradient * free, free, moves, turns), direction)
        length = torch.where(renewed, 1, shorter)
        trial = (point + length.unsqueeze(1) * direction).clamp(lower, upper)
        flat = ((point - gradient).clamp(lower, upper) - point).abs().amax(dim=1) <= _FLAT
        ended = (taken & (flat | small)) | (stuck & alone) | (trial == point).all(dim=1)
        found[rows] = point
        if ended.any():
            going = ~ended
            rows, point, trial, value, gradient = (one[going] for one in (rows, point, trial, value, gradient))
            lower, upper, direction, length = (one[going] for one in (lower, upper, direction, length))
            moves, turns = moves[:, going], turns[:, going]
    return found


def _pushed(memory: Tensor, newest: Tensor, taken: Tensor) -> Tensor:
    """The memory, oldest first, with `newest` in place of the oldest where `taken`."""
    return torch.where(taken.view(1, -1, 1), torch.cat((memory[1:], newest.unsqueeze(0))), memory)


def _direction(gradient: Tensor, free: Tensor, moves: Tensor, turns: Tensor) -> Tensor:
    """Minus the inverse quasi-Newton Hessian of the free variables times their gradient (Nocedal's two loops), (m, d).

    Pairs without positive curvature among the free variables are left out. Without any pair: the steepest direction at
    length 1.
    """
    moves, turns = moves * free, turns * free
    curvature, bend = (moves * turns).sum(dim=2), turns.square().sum(dim=2)
    valid = curvature > _CURVATURE * bend
    inverse = torch.where(valid, 1 / curvature, 0)
    direction, shares = -gradient, []
    for move, turn, rho in zip(moves.flip(0), turns.flip(0), inverse.flip(0), strict=True):
        share = rho * (move * direction).sum(dim=1)
        direction = direction - share.unsqueeze(1) * turn
        shares.append(share)
    newest = valid.to(torch.uint8).cumsum(dim=0).argmax(dim=0, keepdim=True)
    scale = (curvature / bend).gather(0, newest).squeeze(0)
    # The largest component is taken out first, so that no magnitude overflows.
    size = gradient.abs().amax(dim=1)
    size = size.where(size > 0, 1)
    steepest = 1 / size / (gradient / size.unsqueeze(1)).norm(dim=1).clamp(min=1)
    direction = direction * scale.where(valid.any(dim=0), steepest).unsqueeze(1)
    for move, turn, rho, share in zip(moves, turns, inverse, reversed(shares), strict=True):
        direction = direction + (share - rho * (turn * direction).sum(dim=1)).unsqueeze(1) * move
    return direction
