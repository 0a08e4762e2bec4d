"""Adversarial images that somebody else has found, as an attack: ``images:FILE``.

They come from another library, a paper's authors or an entry to a board. The harness does with them what it does with the
images of any attack: budget and box are checked, fresh passes score them, and the worst case of each example counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, make_dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from advbench.attacks.access import Access, DecisionBased
from advbench.attacks.attack import check_norm
from advbench.attacks.capabilities import GIVEN, Passes
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Goal, ThreatModel
from advbench.reading import arrays_of
from advbench.user_models.files import file_hash

PREFIX = "images:"


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenImages:
    """Adversarial images from a file, found by whomever and however: they ask the model nothing.

    minimal: whether they are meant to be near, so that their distances count, rather than inside a given epsilon. An example
    of which the file has no image keeps its own.
    """

    minimal: bool = False

    path: ClassVar[Path]
    identity: ClassVar[str]
    norms: ClassVar[frozenset[str]] = frozenset({"linf", "l2", "l1"})
    knowledge: ClassVar[type[Access]] = DecisionBased
    targeted: ClassVar[bool] = False
    family: ClassVar[str] = GIVEN

    @property
    def minimal_norm(self) -> bool:
        """Whether their distances count."""
        return self.minimal

    def passes(self, threat: ThreatModel, classes: int) -> Passes:  # noqa: ARG002
        """None."""
        return Passes(0)

    def __call__(self, access: DecisionBased, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG) -> Tensor:  # noqa: ARG002
        """The images of the examples, shape (n, c, h, w), by their positions in the test split.

        Raises ValueError for images of another shape than those of the data set, or a file that has changed meanwhile.
        """
        check_norm(self, threat)
        images, index = _held(self.path, self.identity)
        if images.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"Expected images of shape {tuple(x.shape[1:])} in {self.path.name}, as the data set has, got "
                f"{tuple(images.shape[1:])}"
            )
        place = {int(position): row for row, position in enumerate(index)}
        rows = [place.get(position, -1) for position in rng.index.tolist()]
        found = torch.tensor([row >= 0 for row in rows], dtype=torch.bool, device=x.device)
        given = images[[max(row, 0) for row in rows]].to(x)
        return torch.where(found[:, None, None, None], given, x)


def resolve(name: str) -> Callable[..., object]:
    """The attack of a name ``images:FILE``. Raises ValueError, in one line, for a file that holds no images."""
    path = Path(name.removeprefix(PREFIX)).expanduser().absolute()
    try:
        found = path.stat()
        return _made(path, found.st_mtime_ns, found.st_size)
    except OSError as error:
        raise ValueError(f"Expected adversarial images at {path}, got {error.strerror or error}") from None


@cache
def _made(path: Path, changed: int, size: int) -> Callable[..., object]:  # noqa: ARG001
    """The attack of a file as it is, which `changed` and `size` tell from what it was."""
    identity = file_hash(path)
    _held(path, identity)
    return make_dataclass(
        "GivenImages",
        [("minimal", bool, field(default=False))],
        bases=(GivenImages,),
        namespace={"path": path, "identity": identity, "__doc__": GivenImages.__doc__, "__module__": __name__},
        frozen=True,
        kw_only=True,
    )


@lru_cache(maxsize=2)
def _held(path: Path, identity: str) -> tuple[Tensor, NDArray[np.int64]]:
    """The images of a file that has this hash, read once. ValueError if it has another one by now."""
    found = read_images(path)
    if file_hash(path) != identity:
        raise ValueError(f"Expected {path} as it was when the run was planned, got another file")
    return found


def read_images(path: Path) -> tuple[Tensor, NDArray[np.int64]]:
    """The images of a file, (n, c, h, w), float32, and their positions in the test split, (n,).

    A NumPy archive has them as ``x_adv``, and may have ``index``; without it they are those of the first n test images.
    uint8 is divided by 255; (n, h, w), and (n, h, w, c) with one or three channels, are read as well.

    Raises ValueError, in one line, for any other file, and OSError for one that cannot be read.
    """
    try:
        arrays = arrays_of(path, ("x_adv",), ("index",))
    except ValueError as error:
        raise ValueError(f"Expected a NumPy archive with x_adv, adversarial images, at {path}: {error}") from None
    images = _images(arrays["x_adv"], path)
    return images, _index(arrays.get("index"), len(images), path)


def _images(x: NDArray[np.generic], path: Path) -> Tensor:
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[1] not in (1, 3) and x.shape[3] in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    if x.ndim != 4 or not x.size:
        raise ValueError(f"Expected images as (n, c, h, w), (n, h, w, c) or (n, h, w) in {path}, got shape {x.shape}")
    if x.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(x)).float() / 255
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"Expected images as uint8 or floats in {path}, got {x.dtype}")
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))


def _index(index: NDArray[np.generic] | None, n: int, path: Path) -> NDArray[np.int64]:
    if index is None:
        return np.arange(n, dtype=np.int64)
    if index.shape != (n,) or not np.issubdtype(index.dtype, np.integer):
        raise ValueError(f"Expected `index` of {n} whole numbers in {path}, got {index.dtype} of shape {index.shape}")
    found = index.astype(np.int64)
    if (found < 0).any() or len(np.unique(found)) < n:
        raise ValueError(f"Expected `index` in {path} to hold positions in the test split, each once, from 0")
    return found
