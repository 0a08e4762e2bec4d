"""What every architecture and data set has to do, as checks that anybody can run on a plug-in's or a file of their own.

Each check is a known way in which numbers go wrong without a word: a network whose answer to an image depends on its batch,
labels out of range, test images that were trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from advbench.conformance import Broken, Inapplicable, Verdict, lines, specs_of, told
from advbench.conformance import examine as examine_attack
from advbench.modes import evaluate
from advbench.registry import registry
from advbench.registry.schemes import Kind, scheme_of
from advbench.registry.specs import Spec
from advbench.zoo.data import DataSet, Split
from advbench.zoo.training import seeded

__all__ = ["Verdict", "examine", "in_order", "lines"]

SHAPES = ((1, 28, 28), (3, 32, 32))
"""What an architecture is built for: it may refuse one of these, in a line."""
_KINDS: tuple[Kind, ...] = ("attacks", "architectures", "datasets")
_CLASSES = 7
_CLOSE = 1e-4
"""Relative rounding that logits of one image may show between batches."""


@dataclass(frozen=True, slots=True)
class _Built:
    """A network in evaluation mode for images of a shape. images: (5, c, h, w) in [0, 1]."""

    spec: Spec
    shape: tuple[int, int, int]
    network: nn.Module
    images: Tensor

    @staticmethod
    def of(spec: Spec, shape: tuple[int, int, int], seed: int = 0) -> _Built:
        with seeded(seed):
            network = registry.build_network(spec, shape, _CLASSES)
        evaluate(network)
        return _Built(spec, shape, network, torch.rand(5, *shape, generator=torch.Generator().manual_seed(1)))

    def logits(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = self.network(x)
        return found


def check_logits(built: _Built) -> None:
    """Logits (n, classes), float32 and finite, also of one image."""
    for x in (built.images, built.images[:1]):
        with torch.no_grad():
            found: object = built.network(x)
        if not isinstance(found, Tensor) or found.shape != (len(x), _CLASSES):
            what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise Broken(f"{len(x)} images of {_CLASSES} classes gave {what}")
        if found.dtype != torch.float32 or not found.isfinite().all():
            raise Broken(f"logits of {found.dtype}, {int((~found.isfinite()).sum())} of them not finite")


def check_alone(built: _Built) -> None:
    """An image's logits do not depend on the batch that it stands in."""
    together, alone = built.logits(built.images), torch.cat([built.logits(x[None]) for x in built.images])
    far = float((together - alone).abs().max() / together.abs().max().clamp(min=1e-12))
    if far > _CLOSE:
        raise Broken(f"logits in a batch and alone differ by {far:.2g} of the largest, in evaluation mode")


def check_repeats(built: _Built) -> None:
    """Two passes agree bit by bit, and change no parameter or buffer."""
    before = [value.clone() for value in built.network.state_dict().values()]
    if not torch.equal(built.logits(built.images), built.logits(built.images)):
        raise Broken("two passes in evaluation mode differ")
    after = built.network.state_dict().values()
    if not all(torch.equal(one, other) for one, other in zip(before, after, strict=True)):
        raise Broken("a pass in evaluation mode changes weights or buffers")


def check_seeds(built: _Built) -> None:
    """The weights follow from torch's generator alone: one seed gives them again, another one others."""
    weights = [list(_Built.of(built.spec, built.shape, seed).network.state_dict().values()) for seed in (0, 0, 1)]
    again, other = (all(torch.equal(one, two) for one, two in zip(weights[0], each, strict=True)) for each in weights[1:])
    if not again:
        raise Broken("the same seed gives other weights")
    if other:
        raise Inapplicable("its weights do not depend on the seed")


def check_gradient(built: _Built) -> None:
    """The gradient reaches the images, is finite and not zero everywhere."""
    x = built.images.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(built.network(x)[:, 0].sum(), x)
    if not found.isfinite().all():
        raise Broken("the gradient by the images is not finite")
    if not found.any():
        raise Broken("the gradient by the images is zero everywhere: only queries can attack it")


ARCHITECTURE_CHECKS: Mapping[str, Callable[[_Built], None]] = {
    "logits": check_logits,
    "image alone": check_alone,
    "repeats": check_repeats,
    "seeds": check_seeds,
    "gradient": check_gradient,
}
"""The checks of an architecture by name, raising `Broken` where they do not hold."""


def examine_architecture(spec: Spec) -> list[Verdict]:
    """The verdicts of all checks on an architecture, for grey images of 28 x 28 and colour ones of 32 x 32.

    It may refuse one of these shapes. Raises ValueError, in one line, if there is no such architecture or it refuses both.
    """
    built, refused = [], ""
    for shape in SHAPES:
        try:
            built.append(_Built.of(spec, shape))
        except ValueError as error:
            refused = str(error)
    if not built:
        raise ValueError(refused)
    return [_verdict(str(spec), name, [partial(check, one) for one in built]) for name, check in ARCHITECTURE_CHECKS.items()]


def check_values(data: DataSet) -> None:
    """Finite float32 images inside the box."""
    for name, split in _splits(data).items():
        if split.x.dtype != torch.float32 or not split.x.isfinite().all():
            raise Broken(f"{name}: images of {split.x.dtype}, {int((~split.x.isfinite()).sum())} values not finite")
        if data.box is not None and len(split) and not (data.box[0] <= split.x.min() and split.x.max() <= data.box[1]):
            low, high = float(split.x.min()), float(split.x.max())
            raise Broken(f"{name}: images in [{low:g}, {high:g}], outside the box {data.box}")


def check_labels(data: DataSet) -> None:
    """Labels from 0 to the number of classes, one for each image, each class in the test split."""
    for name, split in _splits(data).items():
        if split.y.shape != (len(split.x),) or split.y.dtype != torch.int64:
            raise Broken(f"{name}: labels of {split.y.dtype}, {tuple(split.y.shape)}, for {len(split.x)} images")
        if len(split) and not (split.y.min() >= 0 and split.y.max() < data.n_classes):
            raise Broken(f"{name}: labels {int(split.y.min())} to {int(split.y.max())}, of {data.n_classes} classes")
    missing = set(range(data.n_classes)) - set(data.test.y.tolist())
    if missing:
        raise Broken(f"test: no image of {len(missing)} of {data.n_classes} classes, the first {min(missing)}")


def check_positions(data: DataSet) -> None:
    """Each image of a split has a position of its own."""
    for name, split in _splits(data).items():
        if len(set(split.index.tolist())) < len(split) or split.index.shape != split.y.shape:
            raise Broken(f"{name}: positions repeat")


def check_apart(data: DataSet) -> None:
    """No test image is among the training or validation images, bit by bit."""
    test = {_digest(x) for x in data.test.x}
    for name in ("train", "validation"):
        split = _splits(data)[name]
        shared = sum(_digest(x) in test for x in split.x)
        if shared:
            raise Broken(f"{shared} of {len(split)} {name} images are in the test split: accuracy would be of known images")
    if not len(data.train) and not len(data.validation):
        raise Inapplicable("it has a test split alone")


DATA_CHECKS: Mapping[str, Callable[[DataSet], None]] = {
    "values": check_values,
    "labels": check_labels,
    "positions": check_positions,
    "splits apart": check_apart,
}
"""The checks of a data set by name, raising `Broken` where they do not hold."""


def examine_data(name: str, data_dir: Path | None = None) -> list[Verdict]:
    """The verdicts of all checks on a data set, and whether loading it again gives the same.

    Raises ValueError, in one line, for an unknown name or files of another form, FileNotFoundError for missing files.
    """
    data = registry.load_dataset(name, data_dir)

    def check_again() -> None:
        again = registry.load_dataset(name, data_dir)
        if again.fingerprint != data.fingerprint:
            raise Broken("loaded again it has other images, labels or splits")

    verdicts = [_verdict(name, check, [partial(run, data)]) for check, run in DATA_CHECKS.items()]
    return [*verdicts, _verdict(name, "loads again", [check_again])]


def examine(kind: Kind, spec: Spec, data_dir: Path | None = None) -> list[Verdict]:
    """The verdicts on a component of a kind, an attack, an architecture or a data set. Raises as the three do."""
    if kind == "attacks":
        return examine_attack(spec)
    return examine_architecture(spec) if kind == "architectures" else examine_data(spec.text, data_dir)


def in_order(texts: Sequence[str] | None) -> list[tuple[Kind, Spec]]:
    """The components of a list of specs with their kinds: attacks, then architectures, then data sets.

    An unknown name counts as that of an attack. Without a list all registered attacks.
    """
    if not texts:
        return [("attacks", spec) for spec in specs_of(None)]
    found = [(_kind_of(spec), spec) for spec in map(Spec.parse, texts)]
    return sorted(found, key=lambda pair: _KINDS.index(pair[0]))


def _kind_of(spec: Spec) -> Kind:
    known = (kind for kind in _KINDS if spec.name in registry.of(kind) or scheme_of(kind, spec.name) is not None)
    return next(known, _KINDS[0])


def _splits(data: DataSet) -> dict[str, Split]:
    return {"train": data.train, "validation": data.validation, "test": data.test}


def _digest(x: Tensor) -> bytes:
    return hashlib.blake2b(x.contiguous().numpy().data, digest_size=16).digest()


def _verdict(label: str, name: str, checks: list[Callable[[], None]]) -> Verdict:
    """How a check ended that is made several times: it fails where one does."""
    failures, inapplicable = dict[str, None](), ""
    for check in checks:
        try:
            check()
        except Inapplicable as reason:
            inapplicable = str(reason)
        except Broken as reason:
            failures[str(reason)] = None
        except Exception as error:
            failures[told(error)] = None
    if failures:
        return Verdict(label, name, "fails", "; ".join(failures))
    return Verdict(label, name, "n/a" if inapplicable else "holds", inapplicable)
