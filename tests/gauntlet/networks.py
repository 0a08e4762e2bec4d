"""The gauntlet's networks: images (n, c, h, w) in [0, 1] -> logits (n, classes)."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Winners(nn.Module):
    """k-winners-take-all (Xiao et al. 2020, arXiv:1905.10510): the largest tenth of a layer's units stay, the rest are 0."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        least = flat.topk(max(1, flat.shape[1] // 10), dim=1).values[:, -1:]
        return (flat * (flat >= least)).view_as(x)


class Quantised(nn.Module):
    """Pixels rounded to `levels` values; the gradient passes straight through."""

    def __init__(self, levels: int = 4) -> None:
        super().__init__()
        self.steps = levels - 1

    def forward(self, x: Tensor) -> Tensor:
        return x + ((x * self.steps).round() / self.steps - x).detach()


class Thermometer(nn.Module):
    """A pixel as `levels` bits, each whether it is above k / levels (Buckman et al. 2018); a straight-through gradient."""

    def __init__(self, levels: int = 10) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        thresholds = torch.arange(self.levels, device=x.device, dtype=x.dtype).view(1, -1, 1, 1) / self.levels
        soft = x.repeat_interleave(self.levels, dim=1)
        hard = (soft > thresholds.repeat(1, x.shape[1], 1, 1)).to(x.dtype)
        return soft + (hard - soft).detach()


class Scaled(nn.Module):
    """The logits of a body times a number."""

    def __init__(self, body: nn.Module, scale: float) -> None:
        super().__init__()
        self.body, self.scale = body, scale

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x) * self.scale
        return logits


class InBlocks(nn.Module):
    """A copy of a network that answers so many images at a time, channels last: a pass of 64 stays in a core's cache.

    500 images of the LeNet take 0.17 s forward and backward, 0.33 s in one piece with channels first.
    """

    def __init__(self, body: nn.Module, size: int = 64) -> None:
        super().__init__()
        self.body, self.size = copy.deepcopy(body).to(memory_format=torch.channels_last), size  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        blocks = x.split(self.size)
        return torch.cat([self.body(block.contiguous(memory_format=torch.channels_last)) for block in blocks])


class Averaged(nn.Module):
    """The logarithm of the mean probability of several networks."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x).log_softmax(dim=1) for member in self.members]).logsumexp(dim=0)


class Noisy(nn.Module):
    """Gaussian noise at the input: fresh in training, at test time the mean logits over four draws of the model's own."""

    def __init__(self, body: nn.Module, shape: tuple[int, int, int], deviation: float = 0.25) -> None:
        super().__init__()
        self.body, self.deviation = body, deviation
        self.register_buffer("draws", torch.randn(4, *shape))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.body(x + self.deviation * torch.randn_like(x))
        noisy = [self.body(x + self.deviation * draw) for draw in self.draws]
        return torch.stack(noisy).mean(dim=0)


class Block(nn.Module):
    """A transformer's block: attention and two dense layers, each after a layer norm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.parts, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dense = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        parts = self.parts(self.before(x)).view(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        weights = (query @ key.transpose(-2, -1) * (width // self.heads) ** -0.5).softmax(dim=-1)
        x = x + self.out((weights @ value).transpose(1, 2).reshape(n, tokens, width))
        return x + self.dense(self.between(x))


class Transformer(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929): patches, two blocks, the mean token."""

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int = 32) -> None:
        super().__init__()
        channels, height, breadth = shape
        patch = 4 if height % 4 == 0 else 7
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.place = nn.Parameter(0.02 * torch.randn(1, (height // patch) * (breadth // patch), width))
        self.blocks = nn.Sequential(Block(width, 4), Block(width, 4))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.place
        logits: Tensor = self.head(self.blocks(tokens).mean(dim=1))
        return logits


UNITS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
    "winners": Winners,
}

Shape = tuple[int, int, int]


def strided(shape: Shape, classes: int, units: str) -> nn.Sequential:
    """Two strided convolutions and two dense layers."""
    unit = UNITS[units]
    body = [nn.Conv2d(shape[0], 8, 4, stride=2), unit(), nn.Conv2d(8, 16, 4, stride=2), unit(), nn.Flatten()]
    return _with_head(body, shape, unit, 64, classes)


def pooled(shape: Shape, classes: int, units: str) -> nn.Sequential:
    """A small LeNet: two convolutions with max pooling, two dense layers."""
    unit = UNITS[units]
    body = [nn.Conv2d(shape[0], 8, 3), unit(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), unit(), nn.MaxPool2d(2), nn.Flatten()]
    return _with_head(body, shape, unit, 64, classes)


def lenet(shape: Shape, classes: int, units: str) -> nn.Sequential:
    """LeNet-5 with 32 and 64 filters of 3 x 3, max pooling and 200 dense units."""
    unit = UNITS[units]
    body = [nn.Conv2d(shape[0], 32, 3), unit(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), unit(), nn.MaxPool2d(2), nn.Flatten()]
    return _with_head(body, shape, unit, 200, classes)


def saturating(shape: Shape, classes: int, units: str) -> nn.Sequential:
    """Sigmoid and tanh units, whatever the `units`."""
    body = [nn.Conv2d(shape[0], 8, 4, stride=2), nn.Sigmoid(), nn.Conv2d(8, 16, 4, stride=2), nn.Tanh(), nn.Flatten()]
    return _with_head(body, shape, nn.Tanh, 64, classes)


def quantised(shape: Shape, classes: int, units: str) -> nn.Sequential:
    """`strided` on quantised pixels."""
    return nn.Sequential(Quantised(), strided(shape, classes, units))


def thermometer(shape: Shape, classes: int, units: str) -> nn.Sequential:
    """`strided` on thermometer codes."""
    code = Thermometer()
    return nn.Sequential(code, strided((code.levels * shape[0], *shape[1:]), classes, units))


def batch_norm(shape: Shape, classes: int, units: str) -> nn.Sequential:
    """Two strided convolutions, each with batch normalisation."""
    unit = UNITS[units]
    body = [nn.Conv2d(shape[0], 8, 4, stride=2), nn.BatchNorm2d(8), unit()]
    body += [nn.Conv2d(8, 16, 4, stride=2), nn.BatchNorm2d(16), unit(), nn.Flatten()]
    return _with_head(body, shape, unit, 64, classes)


def average_pooling(shape: Shape, classes: int, units: str) -> nn.Sequential:
    """Two convolutions and the mean over all places."""
    unit = UNITS[units]
    body = [
        nn.Conv2d(shape[0], 16, 3, stride=2),
        unit(),
        nn.Conv2d(16, 32, 3),
        unit(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ]
    return nn.Sequential(*body, nn.Linear(32, classes))


def transformer(shape: Shape, classes: int, units: str) -> nn.Module:
    """A vision transformer with GELU units, whatever the `units`."""
    return Transformer(shape, classes)


def ensemble(shape: Shape, classes: int, units: str) -> nn.Module:
    """Three networks: `strided` twice, `pooled` once."""
    return Averaged([strided(shape, classes, units), strided(shape, classes, "softplus"), pooled(shape, classes, units)])


def noisy(shape: Shape, classes: int, units: str) -> nn.Module:
    """`strided` behind noise at the input."""
    return Noisy(strided(shape, classes, units), shape)


NETWORKS: dict[str, Callable[[Shape, int, str], nn.Module]] = {
    "strided": strided,
    "pooled": pooled,
    "lenet": lenet,
    "saturating": saturating,
    "quantised": quantised,
    "thermometer": thermometer,
    "batch-norm": batch_norm,
    "average-pooling": average_pooling,
    "transformer": transformer,
    "ensemble": ensemble,
    "noisy": noisy,
}


def _with_head(
    body: list[nn.Module], shape: Shape, unit: Callable[[], nn.Module], width: int, classes: int
) -> nn.Sequential:
    """The body and two dense layers."""
    with torch.no_grad():
        features = nn.Sequential(*body).eval()(torch.zeros(1, *shape)).shape[1]
    for module in body:
        module.train()
    return nn.Sequential(*body, nn.Linear(features, width), unit(), nn.Linear(width, classes))
