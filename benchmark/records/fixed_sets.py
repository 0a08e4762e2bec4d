"""Fixed collections of adversarial images that one model was fooled by, on which every other model is scored.

Shaham et al. 2015 (arXiv:1511.05432) compare defended models on 1203 images of MNIST and 1712 of CIFAR-10, made from the
undefended baseline with first-order attacks in l1, l2 and linf. The transfer matrices of runs at each norm and radius hold
all that such a comparison needs; nothing is crafted or scored again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from advbench.clocks import single_thread
from advbench.defenses.defended import Defended
from advbench.results.record import Examples, Record
from advbench.results.statistics import Estimate, bootstrap_mean, wilson
from advbench.results.store import Store
from advbench.tasks.craft import read_images
from advbench.tasks.evaluation import count
from advbench.zoo.data import Split


@dataclass(frozen=True, slots=True, eq=False)
class FixedSet:
    """Adversarial images that fool their source, as many of each norm.

    out: the folder of their records. source, attack, seed: what they were made with. records: keys of the cells of the
    source on itself. part, row: which of these cells, in ascending order, and which of its examples each image is, (n,)
    int64. index: its position in the test split; label: its true class; both (n,) int64. norm: the norm of each, (n,) str.

    >>> found = fixed_set("advbench-out", "none", size=5)  # "advbench-out": the folder of a finished transfer matrix
    >>> tuple(found.images().x.shape), sorted(found.accuracy("weight-decay"))
    ((5, 1, 28, 28), ['all', 'linf'])
    """

    out: Path
    source: str
    attack: str
    seed: int
    records: tuple[str, ...]
    part: NDArray[np.int64]
    row: NDArray[np.int64]
    index: NDArray[np.int64]
    label: NDArray[np.int64]
    norm: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.row)

    def accuracy(self, target: str) -> dict[str, Estimate]:
        """How a target of the runs answers the set, from its transfer records: by norm, and on ``all`` of it.

        Raises ValueError if a record of the target is missing or failed.
        """
        store = Store(self.out)
        found = {_cell_name(record): key for key, record in _transfers(store, self.source, target, self.attack, self.seed)}
        shares = np.empty(len(self))
        for part, key in enumerate(self.records):
            name = _cell_name(store.read(key))
            if name not in found:
                raise ValueError(f"Expected a scored transfer from {self.source!r} to {target!r} at {name}, got none")
            examples, rows = store.examples(found[name]), self.part == part
            shares[rows] = (examples.report_correct / examples.draws)[self.row[rows]]
        return self._estimates(shares)

    def images(self) -> Split:
        """The adversarial images with their true labels and their positions in the test split."""
        store, x_adv = Store(self.out), []
        for part, key in enumerate(self.records):
            (craft,) = store.read(key).details["crafts"]
            x_adv.append(read_images(craft, self.out)[torch.from_numpy(self.row[self.part == part])])
        return Split(torch.cat(x_adv), torch.from_numpy(self.label), torch.from_numpy(self.index))

    def score(
        self, defended: Defended, *, draws: int = 10, batch: int = 128, device: str | torch.device = "cpu"
    ) -> dict[str, Estimate]:
        """How any model answers the set: by norm, and on ``all`` of it. draws: of a stochastic model."""
        place = torch.device(device)
        with single_thread():
            found = count(defended, self.images(), seed=self.seed, draws=draws, batch=batch, device=place)
        return self._estimates(found.report.numpy() / found.draws)

    def _estimates(self, shares: NDArray[np.float64]) -> dict[str, Estimate]:
        parts = {norm: shares[self.norm == norm] for norm in dict.fromkeys(self.norm.tolist())} | {"all": shares}
        return {name: _mean(values) for name, values in parts.items()}


def fixed_set(
    out: str | Path,
    source: str,
    *,
    attack: str = "fgm",
    norms: Sequence[str] | None = None,
    size: int | None = None,
    seed: int = 0,
    choice: int = 0,
) -> FixedSet:
    """The images that fool `source`, from the transfer records in `out`, equally many of each norm that was run.

    Of all images that the source gets right before and wrong after the attack, at any radius that was run, as many of each
    norm are drawn as the norm with the fewest has, or together `size` (the first norms have one more where it does not
    divide). Later runs in the folder change the set where they add radii or norms of this source and attack.

    source: the label of the model as its records have it, such as ``none``. attack: the label of the attack. norms: those
    that count, all that were run if None. seed: the training seed of the source. choice: the seed of the draw.
    Raises ValueError if there are no such records, the images of the records differ, or a norm has too few.

    >>> found = fixed_set("advbench-out", "none", size=5)  # "advbench-out": the folder of a finished transfer matrix
    >>> len(found), found.accuracy("none")["all"].value  # the source is fooled by every one
    (5, 0.0)
    """
    store = Store(Path(out))
    cells = sorted(_transfers(store, source, source, attack, seed), key=lambda cell: _cell_name(cell[1]))
    cells = [cell for cell in cells if norms is None or cell[1].threat["norm"] in norms]
    if not cells:
        raise ValueError(
            f"Expected scored transfers of {attack!r} from {source!r} to itself (seed {seed}) in {out}, got none: "
            "run `advbench run --matrix transfer` at each norm"
        )
    keys, records = [key for key, _ in cells], [record for _, record in cells]
    _check_same_images(records)
    examples = [store.examples(key) for key in keys]
    pools = {norm: _pool(norm, records, examples) for norm in dict.fromkeys(record.threat["norm"] for record in records)}
    wanted = _shares({norm: len(pool) for norm, pool in pools.items()}, size)
    generator = np.random.default_rng(choice)
    drawn = [pool[np.sort(generator.permutation(len(pool))[: wanted[norm]])] for norm, pool in pools.items()]
    part, row = np.concatenate(drawn).T
    index, label = (
        np.array([getattr(examples[one], name)[other] for one, other in zip(part, row, strict=True)], dtype=np.int64)
        for name in ("index", "label")
    )
    norm = np.array([records[one].threat["norm"] for one in part], dtype=np.str_)
    return FixedSet(Path(out), source, attack, seed, tuple(keys), part, row, index, label, norm)


def _transfers(store: Store, source: str, target: str, attack: str, seed: int) -> list[tuple[str, Record]]:
    """The scored cells of the transfer matrix from one model to another by one attack."""
    return [
        (key, record)
        for key, record in store.readable()
        if record.matrix == "transfer"
        and record.status == "ok"
        and record.source is not None
        and (record.source["label"], record.target["label"]) == (source, target)
        and (record.attack["label"], record.seed) == (attack, seed)
    ]


def _cell_name(record: Record) -> str:
    threat = record.threat
    return f"{threat['norm']} {threat['epsilon']} box {threat['box']}"


def _check_same_images(records: Sequence[Record]) -> None:
    if len({(record.dataset["fingerprint"], record.dataset["n"]) for record in records}) > 1:
        raise ValueError("Expected records of one data set and one number of images, got several: use a folder for each")
    names = [_cell_name(record) for record in records]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"Expected one record of the source on itself at {twice}, got several: use a folder for each run")


def _pool(norm: str, records: Sequence[Record], examples: Sequence[Examples]) -> NDArray[np.int64]:
    """(part, row) of the images of a norm that the source gets right before and wrong after the attack; (m, 2)."""
    parts = []
    for part, (record, found) in enumerate(zip(records, examples, strict=True)):
        if record.threat["norm"] == norm:
            fooled = (2 * found.clean_correct > found.draws) & (2 * found.select_correct < found.draws)
            rows = np.flatnonzero(fooled)
            parts.append(np.column_stack((np.full_like(rows, part), rows)))
    return np.concatenate(parts).astype(np.int64)


def _shares(available: dict[str, int], size: int | None) -> dict[str, int]:
    """How many images of each norm: the same number, to one where `size` does not divide."""
    if size is not None and size < len(available):
        raise ValueError(f"Expected `size` to be at least the number of norms, {len(available)}, got {size}")
    each, more = divmod(size, len(available)) if size is not None else (max(1, min(available.values())), 0)
    wanted = {norm: each + (position < more) for position, norm in enumerate(available)}
    short = [f"{count} of {norm}" for norm, count in available.items() if count < wanted[norm]]
    if short:
        raise ValueError(
            f"Expected {max(wanted.values())} images of each norm that fool the source, got {', '.join(short)}: "
            "run more radii, or leave norms out with `norms`"
        )
    return wanted


def _mean(values: NDArray[np.float64]) -> Estimate:
    """The mean of shares with its 95% interval: Wilson's where they are answers of one draw, else a bootstrap."""
    if np.isin(values, (0.0, 1.0)).all():
        return wilson(float(values.sum()), len(values))
    return bootstrap_mean(values)
