"""The papers' figures: clean images, their adversarials, and the noise between them, magnified."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from advbench.reports import wording
from advbench.reports.cells import Cell
from advbench.reports.section import ImageGrid, Section
from advbench.results.record import Gallery

_GAP = 1


def image_section(cells: Sequence[Cell]) -> Section | None:
    """A grid for each cell with images; transfers of one craft to several targets are shown once, under their source."""
    grids: dict[bytes, ImageGrid] = {}
    for cell in cells:
        if cell.gallery is not None and len(cell.gallery.index):
            grids.setdefault(_identity(cell, cell.gallery), _grid(cell, cell.gallery))
    if not grids:
        return None
    return Section(
        title="Images",
        anchor="images",
        text="The same images in every cell: clean above, adversarial in the middle, below their difference around grey, "
        "magnified as given. Under each column: the true label and what the target answers to the adversarial.",
        figures=tuple(grids.values()),
    )


def _identity(cell: Cell, gallery: Gallery) -> bytes:
    """Transfers are the same where the adversarials are; elsewhere every cell is its own."""
    if cell.record.matrix != "transfer":
        return cell.record.key.encode()
    return gallery.adversarial.tobytes() + gallery.index.tobytes()


def _grid(cell: Cell, gallery: Gallery) -> ImageGrid:
    record = cell.record
    noise = gallery.adversarial - gallery.clean
    largest = float(np.abs(noise).max())
    gain = 0.5 / largest if 0 < largest < np.inf else 1.0
    rows = (gallery.clean, gallery.adversarial, 0.5 + gain * noise)
    threat = wording.threat(record.threat["norm"], record.threat["epsilon"])
    did = wording.strategy(record.matrix, record.attack["label"], wording.source(record))
    caption = f"{did}, {threat}, shown to {record.target['label']}"
    if record.seed:
        caption += f", seed {record.seed}"
    return ImageGrid(
        png=png(np.concatenate([_strip(row) for row in rows], axis=0)),
        rows=("clean", "adversarial", f"noise × {wording.number(gain)}"),
        columns=tuple(f"{label} → {answer}" for label, answer in zip(gallery.label, gallery.prediction, strict=True)),
        alt=f"{len(gallery.index)} images: clean, after {did}, and their magnified difference",
        caption=caption,
        group=f"{record.dataset['name']}: {record.target['label']}",
    )


def _strip(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Images (m, c, h, w) side by side with gaps, shape (h + gap, m * (w + gap), c); NaN marks a gap."""
    padded = np.pad(images, ((0, 0), (0, 0), (0, _GAP), (0, _GAP)), constant_values=np.nan)
    m, c, h, w = padded.shape
    return padded.transpose(2, 0, 3, 1).reshape(h, m * w, c)


def png(image: NDArray[np.float32]) -> bytes:
    """An image (h, w, c) in [0, 1] as PNG: grey for one channel, colour for three; NaN is transparent.

    Another number of channels is shown by its mean.
    """
    from matplotlib.image import imsave

    c = image.shape[2]
    colour = image if c == 3 else np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    gaps = np.isnan(colour).any(axis=2, keepdims=True)
    levels = np.round(255 * np.clip(np.nan_to_num(colour), 0, 1)).astype(np.uint8)
    buffer = io.BytesIO()
    imsave(buffer, np.concatenate((levels, np.where(gaps, 0, 255).astype(np.uint8)), axis=2), format="png")
    return buffer.getvalue()
