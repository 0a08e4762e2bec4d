"""The adversarial images of a finished run, with what its records say of each."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from advbench.attacks import balls
from advbench.files import write_atomically
from advbench.registry import registry
from advbench.results.archive import is_archive
from advbench.results.record import Examples, Record
from advbench.results.statistics import distance, robust
from advbench.results.store import Store
from advbench.tasks.artefacts import artefact
from advbench.tasks.craft import read_craft
from advbench.tasks.evaluation import Craft
from advbench.tasks.images import scored_split

_SHOWN = 8
"""The most cells that a message names."""


@dataclass(frozen=True, slots=True, eq=False)
class AdversarialImages:
    """The adversarial images of one cell, in the order of the data set.

    record: of the cell. x_adv: (n, c, h, w), float32, on the CPU. y: true labels. index: positions in the test split; both
    (n,) int64. clean_correct: whether the clean image is classified right, (n,) bool. success: whether the model is right
    about the clean image and wrong about the adversarial one, which no detector rejects, within epsilon where the threat has
    one; of a random model on most draws; (n,) bool. distance: in the norm of the threat, infinity where a minimal-norm
    attack failed, NaN where nothing was attacked, (n,) float64. forwards, backwards, queries: what each image cost, over all
    attacked surrogates, (n,) int64.

    >>> found = adversarial_images("advbench-out", "fgm", target="none", source="none")  # of a finished run
    >>> bool((found.success <= found.clean_correct).all()), found.distance.shape == found.y.shape
    (True, True)
    """

    record: Record
    x_adv: Tensor
    y: Tensor
    index: Tensor
    clean_correct: Tensor
    success: Tensor
    distance: Tensor
    forwards: Tensor
    backwards: Tensor
    queries: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def save(self, file: str | Path) -> Path:
        """Write a compressed NumPy archive with x_adv, y and index, which the attack ``images:FILE`` reads; its path."""
        path = Path(file)
        content = io.BytesIO()
        np.savez_compressed(content, x_adv=self.x_adv.numpy(), y=self.y.numpy(), index=self.index.numpy())
        write_atomically(path, content.getvalue())
        return path


def adversarial_images(
    out: str | Path,
    attack: str | None = None,
    *,
    target: str | None = None,
    source: str | None = None,
    matrix: str | None = None,
    norm: str | None = None,
    epsilon: float | None = None,
    seed: int | None = None,
    x: Tensor | None = None,
    data_dir: str | Path | None = None,
) -> AdversarialImages:
    """The adversarial images of one cell of a finished run, as they were verified and scored.

    out: the folder that `run` or `evaluate` has left. attack, target, source: labels, as the leaderboard has them. matrix,
    norm, epsilon, seed: of the cell. What tells it from no other cell may be left out.
    x: the clean images that were scored, (n, c, h, w). They are needed where a defense was attacked through several
    surrogates or is random, to find which candidate counts, and are read from the data set, in `data_dir`, if None.

    Raises ValueError, in one line, if no cell fits or several do, for an archive, which holds outcomes without images, and
    if the images are damaged or were never made.

    >>> found = adversarial_images("advbench-out", "fgm", target="none", source="none")  # of a finished run
    >>> len(found), found.x_adv.shape[0], found.record.attack["label"]
    (50, 50, 'fgm')
    """
    if is_archive(out):
        raise ValueError(f"Expected the folder of a run, got {out}: an archive holds outcomes, and no images")
    store = Store(Path(out))
    asked: dict[str, object] = {"attack": attack, "target": target, "source": source, "matrix": matrix}
    asked |= {"norm": norm, "epsilon": epsilon, "seed": seed}
    wanted = {name: value for name, value in asked.items() if value is not None}
    scored = [record for _, record in store.readable() if record.status == "ok"]
    fitting = [record for record in scored if all(_facts(record)[name] == value for name, value in wanted.items())]
    if len(fitting) != 1:
        raise ValueError(_not_one(out, wanted, fitting or scored, several=bool(fitting)))
    return images_of(Path(out), fitting[0], store.examples(fitting[0].key), x, data_dir)


def images_of(
    out: Path, record: Record, examples: Examples, x: Tensor | None = None, data_dir: str | Path | None = None
) -> AdversarialImages:
    """The images of a scored cell. x, data_dir, errors: as in `adversarial_images`."""
    crafts = [read_craft(artefact("craft", key, out), len(examples)) for key in record.details["crafts"]]
    there = [craft for craft in crafts if craft is not None]
    if not there:
        raise ValueError(f"The attack {record.attack['label']} had no gradient, so it has no images")
    x_adv = there[0].x_adv
    if len(there) > 1 or record.target["stochastic"]:
        x_adv = _chosen(clean_images(record, x, data_dir), there, examples)
    fooled = robust(record, examples) < 0.5 if _has_radius(record) else _wrong(examples)
    right = np.asarray(2 * examples.clean_correct > examples.draws)
    forwards, backwards, queries = (
        torch.stack([getattr(craft.ledger, name) for craft in there]).sum(dim=0)
        for name in ("forwards", "backwards", "queries")
    )
    return AdversarialImages(
        record=record,
        x_adv=x_adv,
        y=torch.from_numpy(examples.label),
        index=torch.from_numpy(examples.index),
        clean_correct=torch.from_numpy(right),
        success=torch.from_numpy(right & fooled),
        distance=torch.from_numpy(np.asarray(distance(record, examples), dtype=np.float64)),
        forwards=forwards,
        backwards=backwards,
        queries=queries,
    )


def _has_radius(record: Record) -> bool:
    return record.threat["epsilon"] is not None or not record.attack["minimal_norm"]


def _wrong(examples: Examples) -> NDArray[np.bool_]:
    """Where the adversarial image fools the model on most draws, at any distance."""
    return np.asarray(2 * examples.report_correct < examples.draws)


def _chosen(x: Tensor, crafts: Sequence[Craft], examples: Examples) -> Tensor:
    """For each image the candidate that was scored: the one at the distances that were recorded, else the clean image."""
    recorded = torch.stack([torch.from_numpy(getattr(examples, f"distance_{norm}")) for norm in ("l0", "l1", "l2", "linf")])
    chosen = x.clone()
    for craft in reversed(crafts):
        delta = (craft.x_adv - x).to(torch.float64)
        found = torch.stack([balls.distance(delta, norm) for norm in ("l0", "l1", "l2", "linf")])
        same = torch.isclose(found, recorded.to(found), rtol=1e-6, atol=1e-12).all(dim=0)
        failed = ~torch.isfinite(recorded).all(dim=0)  # any candidate will do: none fools the model
        chosen = torch.where((same | failed)[:, None, None, None], craft.x_adv, chosen)
    return chosen


def clean_images(record: Record, x: Tensor | None, data_dir: str | Path | None) -> Tensor:
    """The clean images of a cell. ValueError, in one line, if they are not there."""
    n = record.dataset["n"]
    if x is not None:
        if len(x) != n:
            raise ValueError(f"Expected `x`, the {n} clean images that were scored, got {len(x)}")
        return x.detach().to("cpu", torch.float32)
    name = record.dataset["name"]
    data = registry.load_dataset(name, Path(data_dir) if data_dir is not None else None)
    if data.fingerprint != record.dataset["fingerprint"]:
        raise ValueError(f"Expected the {name} that the run was scored on, got other images: give them as `x`")
    return scored_split(data, n).x


def _facts(record: Record) -> dict[str, object]:
    """What a cell is chosen by."""
    return {
        "attack": record.attack["label"],
        "target": record.target["label"],
        "source": None if record.source is None else record.source["label"],
        "matrix": record.matrix,
        "norm": record.threat["norm"],
        "epsilon": record.threat["epsilon"],
        "seed": record.seed,
    }


def _not_one(out: str | Path, wanted: dict[str, object], found: Sequence[Record], *, several: bool) -> str:
    """What is said where not exactly one cell fits: those that do, or those that there are, by what tells them apart."""
    facts = [_facts(record) for record in found]
    telling = [name for name in _facts(found[0]) if len({str(each[name]) for each in facts}) > 1] if found else []
    names = sorted({", ".join(f"{name} {each[name]}" for name in telling or ["attack"]) for each in facts})
    shown = "; ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    asked = ", ".join(f"{name}={value!r}" for name, value in wanted.items()) or "no choice"
    return (
        f"Expected one scored cell in {out} with {asked}, got {len(found) if several else 0}: {shown or 'no records there'}"
    )
