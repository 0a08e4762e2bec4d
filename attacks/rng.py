"""Random numbers that belong to examples, not to batches.

Every number is a pure function of (seed, purpose, example index, draw, position): Philox4x32-10 of Salmon et al. 2011
("Parallel random numbers: as easy as 1, 2, 3"), vectorised over examples. An example's numbers therefore never depend on
the batch that it stands in, the order of the examples, sharding, or the number of workers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_CACHED_WORDS = 2**16


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10: four words of 32 random bits for each counter.

    counter: four int64 tensors that broadcast together, values in [0, 2**32). key: two ints in [0, 2**32).
    Returns four int64 tensors of the common shape, values in [0, 2**32).
    """
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # int64 products wrap modulo 2**64, so the low 64 bits are those of the unsigned product.
        p, q = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a = (q >> 32).bitwise_and_(_MASK) ^ b ^ k0
        c = (p >> 32).bitwise_and_(_MASK) ^ d ^ k1
        b, d = q.bitwise_and_(_MASK), p.bitwise_and_(_MASK)
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return a, b, c, d


@dataclass(frozen=True, slots=True, eq=False)
class ExampleRNG:
    """Streams of random numbers keyed by (seed, purpose, example index, draw).

    Build one with `ExampleRNG.make`. `fork` names an independent stream, `at` moves to another draw of the same stream,
    `select` keeps some of the examples. The object has no state: the same call gives the same numbers.

    key: 64 bits from the seed, the purpose and the names of the forks. index: the examples' data-set indices, (n,) int64.
    draw: the number of the draw, (n,) int64.

    An example's numbers depend on its index in the data set, and not on the batch:

    >>> pair = ExampleRNG.make(seed=0, purpose="attack", index=torch.tensor([3, 8])).uniform((2,))
    >>> alone = ExampleRNG.make(seed=0, purpose="attack", index=torch.tensor([8])).uniform((2,))
    >>> torch.equal(pair[1:], alone)
    True
    """

    key: tuple[int, int]
    index: Tensor
    draw: Tensor

    @staticmethod
    def make(seed: int, purpose: str, index: Tensor) -> ExampleRNG:
        """A stream for the examples `index`, shape (n,), of a data set; `purpose` such as attack, oracle, select, report."""
        index = index.to(torch.int64)
        return ExampleRNG(_key(f"{seed}/{purpose}"), index, torch.zeros_like(index))

    def fork(self, *names: str | int) -> ExampleRNG:
        """An independent stream for the same examples, named by `names`."""
        return replace(self, key=_key(f"{self.key[0]:08x}{self.key[1]:08x}/" + "/".join(map(str, names))))

    def at(self, draw: int | Tensor) -> ExampleRNG:
        """The same stream at another draw, a number or one per example, in [0, 2**32)."""
        if isinstance(draw, Tensor):
            return replace(self, draw=draw.to(self.index).expand_as(self.index))
        return replace(self, draw=torch.full_like(self.index, draw))

    def select(self, rows: Tensor) -> ExampleRNG:
        """The streams of the given rows: a bool mask or int64 positions."""
        return replace(self, index=self.index[rows], draw=self.draw[rows])

    def bits(self, count: int) -> Tensor:
        """Random words of 32 bits, shape (n, count), int64 in [0, 2**32)."""
        blocks = torch.arange(-(-count // 4), device=self.index.device).unsqueeze(0)
        index, draw = self.index.unsqueeze(1), self.draw.unsqueeze(1)
        words = philox((blocks, draw & _MASK, index & _MASK, index >> 32 & _MASK), self.key)
        return torch.stack(words, dim=2).flatten(1)[:, :count]

    def uniform(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform numbers in [0, 1), multiples of 2**-24, shape (n, *shape)."""
        count = math.prod(shape)
        return self._by_parts(lambda part: (part.bits(count) >> 8).to(dtype).mul_(2.0**-24), count).view(-1, *shape)

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers (Box-Muller, worked in float64, then rounded to `dtype`), shape (n, *shape)."""
        count = math.prod(shape)
        return self._by_parts(lambda part: _box_muller(part.bits(count + count % 2))[:, :count].to(dtype), count).view(
            -1, *shape
        )

    def _by_parts(self, draw: Callable[[ExampleRNG], Tensor], count: int) -> Tensor:
        """What `draw` gives, over parts of the examples whose words fit a processor's cache."""
        rows = max(1, _CACHED_WORDS // max(1, count))
        if self.index.device.type != "cpu" or len(self.index) <= rows:
            return draw(self)
        parts = [slice(start, start + rows) for start in range(0, len(self.index), rows)]
        return torch.cat([draw(replace(self, index=self.index[part], draw=self.draw[part])) for part in parts])

    def integers(self, high: int | Tensor, shape: tuple[int, ...] = ()) -> Tensor:
        """Uniform integers in [0, high), shape (n, *shape), int64; `high` up to 2**31, one number or one per example."""
        bits = self.bits(max(1, math.prod(shape))).view(-1, *shape)
        if isinstance(high, Tensor):
            return bits * high.to(bits).view(-1, *([1] * len(shape))) >> 32
        return bits * high >> 32


def _box_muller(bits: Tensor) -> Tensor:
    """Normal numbers from words of 32 bits, shape (n, m) with m even; float64 of the same shape."""
    half = bits.shape[1] // 2
    radius = (bits[:, :half] + 1).to(torch.float64).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    angle = bits[:, half:].to(torch.float64).mul_(2 * math.pi * 2.0**-32)
    return torch.cat((angle.cos().mul_(radius), angle.sin_().mul_(radius)), dim=1)


def _key(text: str) -> tuple[int, int]:
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")
