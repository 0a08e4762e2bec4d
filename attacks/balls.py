"""The geometry of lp balls around images: distances, projections, steepest directions, random points.

Every function is vectorised over the first dimension, keeps the dtype and the device, and treats an example by itself. The
clean images `x` lie inside the box. l0 counts changed values (each channel of a pixel is one).
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from torch import Tensor

from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Norm, ThreatModel
from advbench.attacks.waiting import on_host

_ORDERS = {"linf": float("inf"), "l2": 2.0, "l1": 1.0, "l0": 0.0}

_HALVINGS = 200
"""More than the halvings of a bracket until it holds no other number."""

_NEWTON_STEPS = 12
"""Newton's steps of the l1 projection before every other one is a halving."""

_POLISHING = 4
"""Passes of the l1 projection on an accelerator, from the kink that sorting gives: one step, and what rounding asks."""

_LEVELS = 16
"""Newton's steps to a water level on an accelerator; images need fewer."""

_SAFE = 1e-15
"""Between this length and its inverse the squares of a gradient that matter neither vanish nor overflow in float32."""

DUAL: dict[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}
"""The dual norm: the inner product of a gradient with its steepest direction in `norm` is its length in ``DUAL[norm]``."""


def per_example(values: Tensor, x: Tensor) -> Tensor:
    """`values`, shape (n,), as (n, 1, ..., 1), so that they broadcast over `x`, shape (n, ...)."""
    return values.reshape(-1, *[1] * (x.dim() - 1))


def distance(delta: Tensor, norm: Norm) -> Tensor:
    """The length of each perturbation, shape (n,), in the dtype of `delta`, shape (n, ...).

    Raises ValueError for the norm ``none``, which has no length.

    >>> delta = torch.tensor([[0.3, -0.4, 0.0]], dtype=torch.float64)
    >>> [distance(delta, norm).item() for norm in ("linf", "l2", "l1", "l0")]
    [0.4, 0.5, 0.7, 2.0]
    """
    if norm not in _ORDERS:
        raise ValueError(f"Expected `norm` to be one of {', '.join(_ORDERS)} to measure a length, got {norm!r}")
    if norm == "linf":
        return delta.flatten(1).abs().amax(dim=1)  # many times as fast on a CPU as the vector norm of order infinity
    length: Tensor = torch.linalg.vector_norm(delta.flatten(1), ord=_ORDERS[norm], dim=1)
    return length


def distances(x_adv: Tensor, x: Tensor) -> dict[str, Tensor]:
    """All distances that a record holds, worked in float64: l0, l1, l2, linf and rms, each of shape (n,).

    rms is the root of the mean squared difference of the values of an image.
    """
    delta = x_adv.double() - x.double()
    lengths = {norm: distance(delta, norm) for norm in ("l0", "l1", "l2", "linf")}
    return {**lengths, "rms": lengths["l2"] / max(1, delta[0:1].numel()) ** 0.5}


def project(x_adv: Tensor, x: Tensor, threat: ThreatModel, radius: Tensor | None = None) -> Tensor:
    """The point nearest to `x_adv` (in l2) among the images that `threat` allows around `x`; shapes (n, ...).

    This is the exact projection on the intersection of ball and box, not one after the other: a clamp for linf, a scaling
    whose clipped values are refilled for l2, soft thresholding between bounds for l1 (Croce & Hein 2021, arXiv:2103.01208,
    section 3.1), the values that save the most for l0. Images that are inside come back bit for bit. Without an epsilon only
    the box counts, without a box only the ball. radius: of each example's ball, shape (n,), in place of the epsilon.

    In l2 the clip takes length from the first value, and the second is refilled up to the sphere:

    >>> x, x_adv = torch.tensor([[0.9, 0.5]]).double(), torch.tensor([[1.3, 0.8]]).double()
    >>> project(x_adv, x, ThreatModel("l2", 0.25))
    tensor([[1.0000, 0.7291]], dtype=torch.float64)
    >>> project(x_adv, x, ThreatModel("linf", 0.25))
    tensor([[1.0000, 0.7500]], dtype=torch.float64)
    """
    boxed = _boxed(x_adv, threat)
    if threat.norm == "none" or (threat.epsilon is None and radius is None):
        return boxed
    radius = x.new_full((len(x),), threat.epsilon_or_inf) if radius is None else radius
    if threat.norm == "linf":
        return boxed.clamp(x - per_example(radius, x), x + per_example(radius, x))
    # A clipped point inside the ball is the projection already, and images inside keep their bits. The rest start from the
    # unclipped point: clipping first would change which point of the intersection is the nearest.
    beyond = distance(boxed - x, threat.norm) > radius
    nearest = {"l2": stretch, "l1": _project_l1, "l0": _project_l0}[threat.norm]
    if not on_host(beyond):
        return torch.where(per_example(beyond, x), nearest(x_adv, x, threat, radius), boxed)
    outside = beyond.nonzero().squeeze(1)
    if not len(outside):
        return boxed
    if len(outside) == len(x):
        return nearest(x_adv, x, threat, radius)
    return boxed.index_copy(0, outside, nearest(x_adv[outside], x[outside], threat, radius[outside]))


def ball_then_box(x_adv: Tensor, x: Tensor, threat: ThreatModel, radius: Tensor | None = None) -> Tensor:
    """`x_adv` projected on the ball alone, then clipped to the box, as most published code does; shapes (n, ...).

    For linf this is the projection on both. In other norms what is clipped lies inside the ball, nearer to `x` than it need
    be. radius: of each example's ball, shape (n,), in place of the epsilon.

    >>> x, x_adv = torch.tensor([[0.9, 0.5]]).double(), torch.tensor([[1.3, 0.8]]).double()
    >>> ball_then_box(x_adv, x, ThreatModel("l2", 0.25))  # `project` gives (1, 0.7291)
    tensor([[1.0000, 0.6500]], dtype=torch.float64)
    """
    return _boxed(project(x_adv, x, replace(threat, box=None), radius), threat)


def stretch(x_adv: Tensor, x: Tensor, threat: ThreatModel, radius: Tensor | None = None) -> Tensor:
    """The last point of the ray from `x` through `x_adv`, clipped to the box, that the ball contains; shapes (n, ...).

    It lies on the sphere, or in the box's corner where the box keeps the ray inside the ball; a zero perturbation stays
    zero. For l2 and a point outside this is also the projection on ball and box, whose form is clip(s delta), s in (0, 1].

    radius: of each example's ball, shape (n,), in place of the epsilon.
    Raises ValueError without either, or for a norm other than linf, l2, l1.

    >>> x, x_adv = torch.tensor([[0.5, 0.5]]).double(), torch.tensor([[0.53, 0.54]]).double()
    >>> stretch(x_adv, x, ThreatModel("l2", 0.25))  # a perturbation of length 0.05, made five times as long
    tensor([[0.6500, 0.7000]], dtype=torch.float64)
    """
    if radius is None:
        radius = x.new_full((len(x),), _radius(threat, "stretch"))
    delta = x_adv - x
    size = distance(delta, "linf")
    delta = delta / per_example(size.where(size > 0, 1), delta)
    rates, room = delta.abs().flatten(1), headroom(delta, x, threat).flatten(1)
    match threat.norm:
        case "linf":
            reach = radius.unsqueeze(1)
            factor = (reach / rates).where((room >= reach) & (rates > 0), torch.inf).amin(dim=1)
        case "l2":
            factor = water_level(rates.square(), room.square(), radius.square(), capped=threat.box is not None).sqrt()
        case _:
            factor = water_level(rates, room, radius, capped=threat.box is not None)
    lengths = (factor.clamp(max=torch.finfo(x.dtype).max).unsqueeze(1) * rates).minimum(room)
    return _boxed(x + delta.sign() * lengths.view_as(x), threat)


def finite(gradient: Tensor) -> Tensor:
    """The gradient an attack can work with where components are NaN or infinite; shape (n, ...).

    NaN counts as zero. An infinite component becomes 1 or -1, and the finite ones of its image shrink to the dtype's
    rounding error: the direction is that of the limit, every sign is kept, nothing overflows. Other images keep their bits.
    """
    infinite = gradient.isinf()
    if on_host(gradient) and not infinite.any():
        return gradient.nan_to_num()
    rest = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    outweighed = infinite.flatten(1).any(dim=1)
    size = distance(rest, "linf")
    size = size.where(outweighed & (size > 0), 1)
    weight = torch.ones_like(size).masked_fill(outweighed, torch.finfo(rest.dtype).eps)
    return torch.where(infinite, gradient.sign(), rest / per_example(size, rest) * per_example(weight, rest))


def steepest(gradient: Tensor, threat: ThreatModel) -> Tensor:
    """The direction of unit length in `threat.norm` with the largest inner product with `gradient`; shapes (n, ...).

    The sign for linf, the normalised gradient for l2, the sign of the largest component alone for l1 (Shaham et al. 2015,
    arXiv:1511.05432, equation 11). A zero gradient gives a zero direction; NaN counts as zero; any magnitude is safe, and
    infinite components outweigh all others (see `finite`).

    Raises ValueError for a norm other than linf, l2, l1.

    >>> gradient = torch.tensor([[3.0, -4.0]])
    >>> [steepest(gradient, ThreatModel(norm, 0.1)).tolist() for norm in ("linf", "l2", "l1")]
    [[[1.0, -1.0]], [[0.6000000238418579, -0.800000011920929]], [[0.0, -1.0]]]
    """
    match threat.norm:
        case "linf":
            return gradient.nan_to_num().sign()  # keeps the sign of infinity
        case "l2":
            return _normalised(gradient)
        case "l1":
            flat = finite(gradient).flatten(1)
            largest = flat.abs().argmax(dim=1, keepdim=True)
            return torch.zeros_like(flat).scatter(1, largest, flat.gather(1, largest).sign()).view_as(gradient)
    raise ValueError(f"Expected a threat in linf, l2 or l1 for a steepest direction, got {threat.norm}")


def _normalised(gradient: Tensor) -> Tensor:
    """The gradients at l2 length 1, or zero; those whose squares may overflow or vanish are scaled down or up first."""
    length = distance(gradient, "l2")
    extreme = ~((length > _SAFE) & (length < 1 / _SAFE))  # NaN too
    direction = gradient / per_example(length, gradient)
    if not on_host(gradient):
        return torch.where(per_example(extreme, gradient), _rescaled(gradient), direction)
    if extreme.any():
        rows = extreme.nonzero().squeeze(1)
        direction = direction.index_copy(0, rows, _rescaled(gradient[rows]))
    return direction


def _rescaled(gradient: Tensor) -> Tensor:
    """The gradients at l2 length 1, or zero, of any magnitude."""
    rest = finite(gradient)
    size = distance(rest, "linf")
    rest = rest / per_example(size.where(size > 0, 1), rest)
    return rest / per_example(distance(rest, "l2").clamp(min=1), rest)


def sparse_step(gradient: Tensor, x_adv: Tensor, threat: ThreatModel, length: float, share: float) -> Tensor:
    """The step of l1 norm `length` that gains the most along `gradient` while no value moves by more than its part.

    The part of a value is `length` over the number of values in `share`, at least one, and no value leaves the box: those
    with the largest gradients move by their part, or to the box's bound where that is nearer, until the length is spent.
    Without bounds this is the step of SLIDE (Tramer & Boneh 2019, arXiv:1904.13000, section 3.2), which stalls on values
    that are next to theirs. The step is shorter where too few values have a gradient.
    """
    gradient = finite(gradient)
    direction = gradient.sign()
    parts = max(1, round(share * gradient[0:1].numel()))
    room = (headroom(gradient, x_adv, threat).clamp_(max=length / parts) * direction.abs()).flatten(1)
    gain = gradient.flatten(1).abs() * room.sign()
    # On the processor the few largest gains are sorted first, which nearly always suffices.
    host, d = on_host(gain), room.shape[1]
    lengths, short = _spend(gain, room, length, min(4 * parts, d) if host else d)
    if host and short.any():
        rows = short.nonzero().squeeze(1)
        lengths = lengths.index_copy(0, rows, _spend(gain[rows], room[rows], length, d)[0])
    return direction * lengths.view_as(gradient)


def _spend(gain: Tensor, room: Tensor, length: float, k: int) -> tuple[Tensor, Tensor]:
    """`length` spent on the k largest gains, each up to its room, (n, d); and where something of it is left, (n,), bool."""
    order = gain.topk(k, dim=1).indices
    room = room.gather(1, order)
    spent = room.cumsum(dim=1)
    lengths = (length - spent + room).clamp(min=0).minimum(room)
    return torch.zeros_like(gain).scatter(1, order, lengths), spent[:, -1] < length


def random_start(x: Tensor, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
    """A point drawn uniformly from the ball's volume around each image, then clipped to the box; shapes (n, ...).

    l2: a normal direction and a radius u**(1/d). l1: d of d + 1 exponentials over their sum, with random signs.

    Raises ValueError without an epsilon or for a norm other than linf, l2, l1.

    >>> x, threat = torch.full((2, 3), 0.5), ThreatModel("l1", 0.1)
    >>> rng = ExampleRNG.make(seed=0, purpose="attack", index=torch.tensor([7, 42]))
    >>> start = random_start(x, threat, rng)
    >>> bool((distance(start - x, "l1") <= 0.1).all())
    True
    >>> torch.equal(random_start(x[1:], threat, rng.select(torch.tensor([1]))), start[1:])  # in a batch of its own
    True
    """
    epsilon = _radius(threat, "random start")
    shape, d = tuple(x.shape[1:]), x[0:1].numel()
    match threat.norm:
        case "linf":
            delta = 2 * rng.uniform(shape, x.dtype) - 1
        case "l2":
            delta = rng.normal(shape, x.dtype)
            radius = rng.fork("radius").uniform((), x.dtype) ** (1 / max(1, d))
            delta = delta * per_example(radius / distance(delta, "l2"), x)
        case _:
            exponentials = -torch.log1p(-rng.uniform((d + 1,), x.dtype))
            signs = 1 - 2 * rng.fork("sign").integers(2, shape)
            delta = (exponentials / exponentials.sum(dim=1, keepdim=True))[:, :d].reshape(x.shape) * signs
    return _boxed(x + epsilon * delta, threat)


def violations(x_adv: Tensor, x: Tensor, threat: ThreatModel, tolerance: float = 1e-5) -> Tensor:
    """Which images `threat` forbids: NaN or infinite, outside the box, or outside the ball; shape (n,), bool.

    Distances are worked in float64. The ball is widened by `tolerance` of its radius, and by what rounding x + delta to the
    dtype of `x_adv` can add: half a unit in the last place of every value. The box is widened by `tolerance` of its width.

    Raises ValueError if the shapes differ.

    >>> x = torch.tensor([[0.5], [0.5], [0.95], [0.5]])
    >>> x_adv = torch.tensor([[0.6], [0.7], [1.02], [float("nan")]])  # allowed, too far, outside the box, no number
    >>> violations(x_adv, x, ThreatModel("linf", 0.1)).tolist()
    [False, True, True, True]
    """
    if x_adv.shape != x.shape:
        raise ValueError(f"Expected `x_adv` of the shape of `x`, {tuple(x.shape)}, got {tuple(x_adv.shape)}")
    values = x_adv.double().flatten(1)
    bad = ~values.isfinite().all(dim=1)
    if threat.box is not None:
        low, high = threat.box
        slack = tolerance * (high - low)
        bad |= ((values < low - slack) | (values > high + slack)).any(dim=1)
    if threat.epsilon is None or threat.norm == "none":
        return bad
    if threat.norm == "l0":
        return bad | (distance(x_adv - x, "l0") > threat.epsilon)
    size = x.double().flatten(1)
    rounding = torch.finfo(x_adv.dtype).eps / 2 * size.abs().maximum(values.abs())
    limit = threat.epsilon * (1 + tolerance) + distance(rounding, threat.norm)
    return bad | ~(distance(values - size, threat.norm) <= limit)


def _radius(threat: ThreatModel, what: str) -> float:
    if threat.norm not in DUAL or threat.epsilon is None:
        raise ValueError(f"Expected a threat in linf, l2 or l1 with an epsilon for a {what}, got {threat}")
    return threat.epsilon


def surface_start(x: Tensor, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
    """A random point at distance epsilon from each image, then clipped to the box; shapes (n, ...).

    linf: a uniform point of the cube, scaled until its largest component is epsilon. l2: a normal direction. As the authors'
    code of Croce & Hein 2020 (arXiv:2003.01690) starts.

    Raises ValueError without an epsilon or for a norm other than linf and l2.
    """
    epsilon, shape = _radius(threat, "random start"), tuple(x.shape[1:])
    if threat.norm not in ("linf", "l2"):
        raise ValueError(f"Expected norm linf or l2 for a start on the surface, got {threat.norm}")
    delta = 2 * rng.uniform(shape, x.dtype) - 1 if threat.norm == "linf" else rng.normal(shape, x.dtype)
    return _boxed(x + per_example(epsilon / distance(delta, threat.norm), x) * delta, threat)


def _boxed(x: Tensor, threat: ThreatModel) -> Tensor:
    return x if threat.box is None else x.clamp(*threat.box)


def headroom(delta: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    """How far each value may move in the direction of `delta` before it leaves the box."""
    if threat.box is None:
        return torch.full_like(x, torch.inf)
    low, high = threat.box
    return torch.lerp(x - low, high - x, (delta > 0).to(x.dtype)).clamp(min=0)  # exact at 0 and 1, and faster than a choice


def water_level(rates: Tensor, caps: Tensor, volume: float | Tensor, *, capped: bool = True) -> Tensor:
    """The smallest t, shape (n,), with sum_i min(t rates_i, caps_i) = volume; infinite where the caps hold less.

    The sum is increasing, concave and piecewise linear in t, so Newton's steps from t = 0 rise to the root without passing
    it, and end there after finitely many: each step caps what has overflowed and shares the rest among the others. On an
    accelerator, which is not asked whether they have ended, `_LEVELS` steps are made; what is missing then stays below the
    root.

    rates, caps: non-negative, shape (n, d). volume: one number, or one per example, shape (n,). capped: whether any cap is
    finite.

    The first value is capped at 0.5, so that the second has to give the rest of the volume:

    >>> water_level(torch.ones(1, 2).double(), torch.tensor([[0.5, 4.0]]).double(), 2.0).item()
    1.5
    """
    level = (volume / rates.sum(dim=1)).nan_to_num(posinf=torch.inf)
    caps = caps.clamp(max=torch.finfo(caps.dtype).max)
    host = on_host(rates)
    for step in itertools.count():
        if not host and step == (_LEVELS if capped else 0):
            return level
        # One Newton step: with the values that are full at this level held at their caps, the level at which the others hold
        # the rest. By concavity it is never above the root. Rounding may put it below the last level, so the higher of the
        # two counts, and the loop ends when no level rises.
        full = (level.unsqueeze(1) * rates >= caps).to(rates.dtype)
        free = ((1 - full) * rates).sum(dim=1)
        rest = volume - (full * caps).sum(dim=1)
        risen = level.maximum(torch.where(free > 0, rest / free, torch.inf))
        if host and not (risen > level).any():
            return level
        level = risen
    raise AssertionError  # the steps are not counted out


def _project_l1(x_adv: Tensor, x: Tensor, threat: ThreatModel, radius: Tensor) -> Tensor:
    """Projection of points outside: lengths min(max(|delta| - shift, 0), room), whose sum falls to epsilon as shift grows.

    The sum is piecewise linear in the shift, so Newton's steps, kept between the shifts that are known to be too small and
    too large (halved where they leave that bracket), end on the exact piece: after 5 to 12 passes in a fifth of the time
    that sorting the kinks takes. The sum is not convex: where Newton's steps still alternate after that, every other
    one is a halving. An accelerator, which is not asked whether they have ended, sorts the kinks, and a few steps from there
    take off what rounding has left.
    """
    delta = x_adv - x
    size, room = delta.abs().flatten(1), headroom(delta, x, threat).flatten(1)
    host = on_host(x)
    low, high = torch.zeros_like(radius), size.amax(dim=1)
    shift = low if host else _last_kink(size, room, radius)
    enough = 4 * torch.finfo(size.dtype).eps * radius
    for step in range(_HALVINGS if host else _POLISHING):
        lengths = (size - shift.unsqueeze(1)).clamp_(min=0).minimum(room)
        surplus = lengths.sum(dim=1) - radius
        low, high = shift.where(surplus >= 0, low), shift.where(surplus <= 0, high)
        moving = (room - lengths).sign_().mul_(lengths.sign()).sum(dim=1)
        # Only the values between zero and their room move with the shift, so that minus their number is the slope. Without
        # any the step is infinite or NaN, which falls outside the bracket and becomes a halving.
        newton = shift + surplus / moving
        inside = (newton > low) & (newton < high) & (step < _NEWTON_STEPS or step % 2 == 0)
        ahead = newton.where(inside, (low + high) / 2)
        done = (surplus.abs() <= enough) | (newton == shift) | (ahead == shift)
        if host and done.all():
            break
        shift = shift.where(done, ahead)
    return _boxed(x + delta.sign() * lengths.view_as(x), threat)


def _last_kink(size: Tensor, room: Tensor, radius: Tensor) -> Tensor:
    """The last kink before the shift of `_project_l1`, from which one Newton step leads to it, shape (n,).

    The sum's kinks are where values begin and end to fall. size, room: shape (n, d).
    """
    d = size.shape[1]
    kinks, order = torch.cat([(size - room).clamp(min=0), size], dim=1).sort(dim=1)
    moving = torch.where(order < d, 1, -1).cumsum(dim=1)
    fallen = (moving[:, :-1] * kinks.diff(dim=1)).cumsum(dim=1)
    whole = size.minimum(room).sum(dim=1, keepdim=True) - radius.unsqueeze(1)
    surplus = torch.cat([whole, whole - fallen], dim=1)
    last = ((surplus >= 0).sum(dim=1, keepdim=True) - 1).clamp(min=0)  # the last kink that is not too far
    return kinks.gather(1, last).squeeze(1)


def _project_l0(x_adv: Tensor, x: Tensor, threat: ThreatModel, radius: Tensor) -> Tensor:
    """Keep as many values as the radius allows, those whose change, clipped to the box, saves the most squared distance."""
    boxed = _boxed(x_adv, threat).flatten(1)
    delta, error = (x_adv - x).flatten(1), x_adv.flatten(1) - boxed
    order = (delta.square() - error.square()).argsort(dim=1, descending=True, stable=True)
    rank = torch.zeros_like(order).scatter(1, order, torch.arange(order.shape[1], device=x.device).expand_as(order))
    return torch.where(rank < radius.floor().unsqueeze(1), boxed, x.flatten(1)).view_as(x)
