"""The papers' figures: clean images, their adversarials, and the noise between them, magnified."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from advbench.reports import formatting
from advbench.reports.section import ImageGrid, Section
from advbench.results.boards import seen_attacker
from advbench.results.cells import Cell
from advbench.results.record import Gallery, Record

_GAP = 1
_RING = (1.9, 2.9)
_MOST = 1000
"""Of more cells than this only some images are shown."""
_FEW = 50


def image_section(cells: Sequence[Cell]) -> Section | None:
    """A grid for each cell of the first seed; transfers of one craft to several targets are shown once.

    Of very many cells those with the least robust accuracy, one for each of the first targets, in the order of the cells.
    """
    distinct: dict[bytes, tuple[Cell, Gallery]] = {}
    first = min((cell.record.seed for cell in cells), default=0)
    own = [cell for cell in cells if cell.record.seed == first]
    chosen = own if len(own) <= _MOST else _strongest(own)
    for cell in chosen:
        gallery = cell.gallery
        if gallery is not None and len(gallery.index):
            distinct.setdefault(_identity(cell, gallery), (cell, gallery))
    if not distinct:
        return None
    left_out = (
        ""
        if chosen is own
        else (
            f" Of {formatting.plural(len(own), 'cell')} with images these are, for each of the first "
            f"{formatting.plural(len(chosen), 'model')}, the one that leaves the least robust accuracy."
        )
    )
    return Section(
        title="Images",
        anchor="images",
        text="The same images in every cell: clean above, adversarial in the middle, below their difference around grey, "
        f"magnified as given. Under each column: the true label and what the target answers to the adversarial.{left_out}",
        figures=tuple(_grid(cell, gallery) for cell, gallery in distinct.values()),
    )


def _strongest(cells: Sequence[Cell]) -> list[Cell]:
    """For each of the first targets the cell that leaves the least robust accuracy."""
    found: dict[str, tuple[float, Cell]] = {}
    for cell in cells:
        label = cell.record.target["label"]
        if label not in found and len(found) == _FEW:
            continue
        rate = cell.statistics.robust_accuracy if cell.statistics else None
        left = rate.value if rate else 2.0
        if label not in found or left < found[label][0]:
            found[label] = left, cell
    return [cell for _, cell in found.values()]


def _identity(cell: Cell, gallery: Gallery) -> bytes:
    """What tells grids apart: the adversarials of a transfer, the key of any other cell."""
    if cell.record.matrix != "transfer":
        return cell.record.key.encode()
    return gallery.adversarial.tobytes() + gallery.index.tobytes()


def _grid(cell: Cell, gallery: Gallery) -> ImageGrid:
    record = cell.record
    noise = gallery.adversarial - gallery.clean
    largest = float(np.abs(noise).max())
    gain = 0.5 / largest if 0 < largest < np.inf else 1.0
    rows = (gallery.clean, gallery.adversarial, 0.5 + gain * noise)
    did = str(seen_attacker(record))
    caption = f"{did}, shown to {record.target['label']}"
    return ImageGrid(
        png=png(np.concatenate([_strip(row) for row in rows], axis=0)),
        rows=("clean", "adversarial", f"noise × {formatting.number(gain)}"),
        columns=tuple(f"{label} → {answer}" for label, answer in zip(gallery.label, gallery.prediction, strict=True)),
        alt=f"{len(gallery.index)} images: clean, after {did}, and their magnified difference",
        caption=caption,
        group=_group(record),
    )


def _group(record: Record) -> str:
    threat = formatting.threat(record.threat["norm"], record.threat["epsilon"])
    return f"{record.matrix.capitalize()}, {threat} on {record.dataset['name']}, seed {record.seed}"


def image_grid(
    images: NDArray[np.float32], *, rows: Sequence[str], columns: Sequence[str], alt: str, caption: str, group: str
) -> ImageGrid:
    """A grid of images, shape (rows, columns, c, h, w), in [0, 1], NaN transparent. ValueError for other shapes."""
    if images.ndim != 5 or images.shape[:2] != (len(rows), len(columns)):
        raise ValueError(f"Expected images of shape ({len(rows)}, {len(columns)}, c, h, w), got {images.shape}")
    strips = np.concatenate([_strip(row) for row in images], axis=0)
    return ImageGrid(png(strips), tuple(rows), tuple(columns), alt, caption, group)


def around_grey(change: NDArray[np.float32], largest: float | None = None) -> NDArray[np.float32]:
    """Changes of images as images: grey is none, black and white are -`largest` and `largest`, by default their extreme."""
    bound = float(np.abs(change).max(initial=0.0)) if largest is None else largest
    shown: NDArray[np.float32] = 0.5 + (0.5 / bound if 0 < bound < np.inf else 1.0) * change
    return shown


def circled(images: NDArray[np.float32], change: NDArray[np.float32]) -> NDArray[np.float32]:
    """The images with a grey ring of two to three pixels around the pixel that changed most, both (n, c, h, w).

    An image that did not change at all has none.
    """
    sizes = np.abs(change).max(axis=1)
    h, w = sizes.shape[1:]
    places = sizes.reshape(len(sizes), -1).argmax(axis=1)
    y, x = np.mgrid[:h, :w]
    distance = np.hypot(y - (places // w)[:, None, None], x - (places % w)[:, None, None])
    ring = (distance > _RING[0]) & (distance < _RING[1]) & (sizes.max(axis=(1, 2)) > 0)[:, None, None]
    shown: NDArray[np.float32] = np.where(ring[:, None], np.float32(0.5), images)
    return shown


def _strip(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Images (m, c, h, w) side by side with gaps, shape (h + gap, m * (w + gap), c); NaN marks a gap."""
    padded = np.pad(images, ((0, 0), (0, 0), (0, _GAP), (0, _GAP)), constant_values=np.nan)
    m, c, h, w = padded.shape
    return padded.transpose(2, 0, 3, 1).reshape(h, m * w, c)


def png(image: NDArray[np.float32]) -> bytes:
    """An image (h, w, c) in [0, 1] as PNG (ISO/IEC 15948): colour for three channels, grey (their mean) for others.

    NaN is transparent.
    """
    h, w, c = image.shape
    shown = image if c == 3 else image.mean(axis=2, keepdims=True)
    opaque = np.where(np.isnan(shown).any(axis=2, keepdims=True), 0, 255)
    levels = np.concatenate((np.round(255 * np.clip(np.nan_to_num(shown), 0, 1)), opaque), axis=2).astype(np.uint8)
    rows = np.concatenate((np.zeros((h, 1), np.uint8), levels.reshape(h, -1)), axis=1)  # each row unfiltered
    header = struct.pack(">IIBBBBB", w, h, 8, 6 if c == 3 else 4, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, content) for name, content in parts)


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
