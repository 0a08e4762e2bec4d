"""Figures as SVG that takes its text colour from the page, so that they read on light and dark paper."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from xml.etree import ElementTree

import numpy as np

from advbench.reports.section import Drawing
from advbench.results.statistics import Values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

_INK = "#010203"
_PAPER = "#010204"
_PALETTE = ("#0f8b8d", "#d1495b", "#7a6fd0", "#c08318", "#3b82c4", "#5a9e3a", "#b0569b", "#7d7d7d")
_STYLES = ("-", "--", "-.", ":")
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "advbench",
    "pdf.fonttype": 42,
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
}
_LONGEST_NAME = 30
_MOST_CELLS = 1000
"""Of a matrix of more cells than this one image is drawn."""
_LARGEST = (14.0, 24.0)
"""Width and height in inches that such an image has at most."""
_MOST_CURVES = 48
"""More curves than this in a figure cannot be told apart: the first few are drawn."""
_FEW = 16
_MOST_NAMES = 12
"""The names that an x axis has room for."""
_PLACES: ContextVar[Mapping[str, int]] = ContextVar("places", default=MappingProxyType({}))
_Place: TypeAlias = tuple[int, int, Literal["left", "right"]]
_SIDES: tuple[tuple[int, Literal["left", "right"]], ...] = ((4, "left"), (-4, "right"))
_BESIDE: tuple[_Place, ...] = tuple((right, up, end) for up in (3, -9, 11, -17, 19, -25) for right, end in _SIDES)
"""Where a note may stand beside its mark: points to the right, points up, and which of its ends is there."""
_INHERITED = {"font-family", "mix-blend-mode"}
_DECIMALS = re.compile(r"-?\d+\.\d+")


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """A line of a plot: name, x and y of shape (m,). marked: whether its points are measurements of their own.

    low, high: the ends of an interval at each point, shape (m,): a band around a line, a whisker at a mark. notes: a word
    beside each mark. steps: whether y holds around each x, as in a histogram.
    """

    name: str
    x: Values
    y: Values
    marked: bool = False
    low: Values | None = None
    high: Values | None = None
    notes: tuple[str, ...] = ()
    steps: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """One plot of several side by side. verticals: positions of vertical lines that mark an epsilon."""

    title: str
    curves: tuple[Curve, ...]
    verticals: tuple[float, ...] = ()


@contextmanager
def same_colours(names: Sequence[str]) -> Iterator[None]:
    """Curves of these names have one colour and style in all plots that are made inside."""
    token = _PLACES.set({name: place for place, name in enumerate(dict.fromkeys(names))})
    try:
        yield
    finally:
        _PLACES.reset(token)


def _places(names: Sequence[str]) -> dict[str, int]:
    """The place among colours and styles of each curve, those without a colour of their own behind the others."""
    known = _PLACES.get()
    others = [name for name in names if name not in known]
    first = len(known) if len(others) < len(names) else 0
    return {name: known[name] for name in names if name in known} | {name: first + i for i, name in enumerate(others)}


def heat_map(
    values: Values,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    words: Sequence[Sequence[str]],
    caption: str,
    alt: str,
    framed: Sequence[tuple[int, int]] = (),
    divider: int | None = None,
) -> Drawing:
    """A matrix of shares in [0, 1] as colours with their percentages.

    values: shape (rows, columns), NaN if there is none: the cell then holds its word. framed: cells (row, column) that
    get a frame. divider: the row before which a gap is drawn. A matrix of very many cells is one raster, without words.
    """
    from matplotlib.patches import Rectangle

    if values.size > _MOST_CELLS:
        return _raster(values, rows, columns, f"{caption}. The numbers are in the table.", alt, framed, divider)
    row_names, column_names = [shorten(name) for name in rows], [shorten(name) for name in columns]
    left = 0.25 + 0.075 * max(map(len, row_names))
    slanted = max(map(len, column_names)) > 9
    top = 0.3 if not slanted else 0.3 + 0.045 * max(map(len, column_names))
    right = 0.1 if not slanted else 0.1 + 0.055 * max(map(len, column_names))
    width, height = 0.78 * len(columns), 0.4 * len(rows)

    def draw(figure: Figure, paper: str) -> None:
        axes = figure.add_axes((left / (left + width + right), 0.0, width / (left + width + right), height / (height + top)))
        _draw_shares(axes, values, row_names, column_names, paper, slanted=slanted)
        for row, column in framed:
            place = Rectangle((column + 0.05, row + 0.07), 0.9, 0.86, fill=False, edgecolor="#ffffff", linewidth=1.3)
            axes.add_patch(place)
        for row, column in np.argwhere(np.isnan(values)):
            axes.text(column + 0.5, row + 0.5, words[row][column] or "–", ha="center", va="center", alpha=0.7)
        if divider is not None:
            axes.axhline(divider, color=_INK, linewidth=2)

    return _drawing((left + width + right, height + top), draw, alt, caption)


def _raster(
    values: Values,
    rows: Sequence[str],
    columns: Sequence[str],
    caption: str,
    alt: str,
    framed: Sequence[tuple[int, int]],
    divider: int | None,
) -> Drawing:
    """A large matrix as one image with a scale beside it; where there is no room, only every few names are written."""
    from matplotlib.patches import Rectangle

    row_names, column_names = [shorten(name) for name in rows], [shorten(name) for name in columns]
    left, top = (0.25 + 0.065 * max(map(len, names)) for names in (row_names, column_names))
    width, height = (min(0.22 * count, limit) for count, limit in zip(values.shape[::-1], _LARGEST, strict=True))
    right = 0.9
    size = (left + width + right, height + top)

    def draw(figure: Figure, _: str) -> None:
        axes = figure.add_axes((left / size[0], 0.0, width / size[0], height / size[1]))
        image = axes.imshow(values, cmap=_shades(), vmin=0, vmax=1, aspect="auto", interpolation="none")
        for row, column in framed:
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="#ffffff", linewidth=0.8))
        if divider is not None:
            axes.axhline(divider - 0.5, color=_INK, linewidth=1.5)
        axes.xaxis.tick_top()
        axes.tick_params(length=0, pad=4, labelsize=7.5)
        for axis, names, room in ((axes.xaxis, column_names, width), (axes.yaxis, row_names, height)):
            places = range(0, len(names), -(-len(names) // max(1, int(room / 0.14))))
            axis.set_ticks(list(places), [names[place] for place in places])
        axes.tick_params(axis="x", rotation=90)
        axes.spines[:].set_visible(False)
        scale = figure.add_axes(((left + width + 0.15) / size[0], 0.1 / size[1], 0.15 / size[0], min(height, 2.5) / size[1]))
        bar = figure.colorbar(image, cax=scale, ticks=[0, 0.25, 0.5, 0.75, 1], format=lambda share, _: f"{100 * share:g}%")
        bar.outline.set_visible(False)

    return _drawing(size, draw, alt, caption)


def _shades() -> Any:
    """The colours of a heat map, which seaborn registers."""
    import seaborn  # noqa: F401
    from matplotlib import colormaps

    return colormaps["crest"]


def _draw_shares(
    axes: Axes, values: Values, row_names: Sequence[str], column_names: Sequence[str], paper: str, *, slanted: bool
) -> None:
    """The coloured cells of a heat map with their percentages and the names beside them."""
    from seaborn import heatmap

    heatmap(
        values,
        ax=axes,
        vmin=0,
        vmax=1,
        cmap="crest",
        cbar=False,
        annot=100 * values,
        fmt=".1f",
        linewidths=1.5,
        linecolor=paper,
        xticklabels=False,  # seaborn would look for labels that overlap, for which it draws the whole figure
        yticklabels=False,
    )
    axes.xaxis.tick_top()
    axes.tick_params(length=0, pad=4)
    axes.set_yticks(np.arange(len(row_names)) + 0.5, row_names, rotation=0, va="center")
    turned: Any = {"rotation": 35, "ha": "left", "rotation_mode": "anchor"} if slanted else {}
    axes.set_xticks(np.arange(len(column_names)) + 0.5, column_names, **turned)


def line_plots(
    panels: Sequence[Panel],
    *,
    x_label: str,
    y_label: str,
    caption: str,
    alt: str,
    shares: bool = True,
    zoomed: bool = False,
    log_x: bool = False,
    x_text: Callable[[float], str] = "{:g}".format,
    x_names: Sequence[str] = (),
    x_shares: bool = False,
) -> Drawing:
    """Curves in panels side by side with one legend below.

    shares: whether y runs over shares in [0, 1], if `zoomed` only as far as the curves do, or over what there is. log_x:
    whether x is on a logarithmic axis, whose ticks say what `x_text` makes of their values. x_names: of the places 0, 1, ...
    on x, in place of numbers; of many only every few are written. x_shares: whether x runs over shares,
    as far as the marks do.
    """
    panels, left_out = _fewer(panels)
    caption = f"{caption}; {left_out}" if left_out else caption
    names = list(dict.fromkeys(curve.name for panel in panels for curve in panel.curves))
    labels, places = [shorten(name) for name in names], _places(names)
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    width = 4.8 if across == 1 else 3.0 * across + 0.3
    legend_columns = max(1, int(width / (0.6 + 0.08 * max(map(len, labels))))) if names else 1
    legend_rows = -(-len(names) // legend_columns)
    slanted = 0.05 + 0.035 * max((len(shorten(name)) for name in x_names), default=0)
    below = 0.22 * legend_rows + (slanted if x_names else 0.0)
    height = (2.7 if across == 1 else 2.35) * down + below

    def draw(figure: Figure, _: str) -> None:
        grid = figure.subplots(down, across, squeeze=False, sharey=True)
        bottom = (0.5 + below) / height
        figure.subplots_adjust(0.68 / width, bottom, 1 - 0.08 / width, 1 - 0.3 / height, wspace=0.1, hspace=0.45)
        for axes, panel in zip(grid.flat, panels, strict=False):
            _draw_panel(axes, panel, places, x_label)
            if log_x:
                _set_log_x(axes, x_text)
            elif x_names:
                _set_names(axes, x_names)
            elif x_shares:
                _set_x_shares(axes)
            elif shares:
                axes.set_xlim(left=0)
        if shares or zoomed:  # the panels share one axis, which is fitted to what is drawn until it is limited
            _set_shares(grid[0, 0], zoomed=zoomed)
        for axes, panel in zip(grid.flat, panels, strict=False):
            _note_marks(axes, panel)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for axes in grid[:, 0]:
            axes.set_ylabel(y_label)
        handles = {line.get_label(): line for axes in grid.flat for line in axes.get_lines()}
        shown = [handles[name] for name in names]
        figure.legend(shown, labels, loc="lower left", ncols=legend_columns, borderaxespad=0.1)

    return _drawing((width, height), draw, alt, caption)


def _fewer(panels: Sequence[Panel]) -> tuple[Sequence[Panel], str]:
    """Panels and curves that a figure has room for, and what of the others is said; nothing if all fit."""
    names = list(dict.fromkeys(curve.name for panel in panels for curve in panel.curves))
    said = [f"the first {_FEW} of {len(panels)} panels"] if len(panels) > _MOST_CURVES else []
    if said:
        panels = panels[:_FEW]
    if len(names) > _MOST_CURVES:
        said.append(f"the first {_FEW} of {len(names)} curves, all of which are in the tables")
        kept = set(names[:_FEW])
        panels = [replace(panel, curves=tuple(curve for curve in panel.curves if curve.name in kept)) for panel in panels]
    return panels, ", ".join(said)


def shorten(name: str) -> str:
    """A name that fits beside a figure."""
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def _draw_panel(axes: Axes, panel: Panel, places: Mapping[str, int], x_label: str) -> None:
    for position in panel.verticals:
        axes.axvline(position, color=_INK, linewidth=0.8, alpha=0.45, linestyle=(0, (2, 2)))
    for curve in panel.curves:
        _draw_curve(axes, curve, places[curve.name])
    axes.set_title(shorten(panel.title), loc="left", fontsize=10)
    axes.set_xlabel(x_label)
    axes.grid(color=_INK, alpha=0.13, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _set_log_x(axes: Axes, x_text: Callable[[float], str]) -> None:
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.xaxis.set_major_formatter(lambda value, _: x_text(value))
    axes.xaxis.set_minor_formatter(lambda *_: "")


def _set_x_shares(axes: Axes) -> None:
    """An x axis of shares, as far as the marks reach and no further than shares can."""
    axes.margins(x=0.2)
    low, high = axes.get_xlim()
    axes.set_xlim(max(low, -0.02), min(high, 1.01))
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}%" if 0 <= value <= 1 else "")


def _set_names(axes: Axes, names: Sequence[str]) -> None:
    """Names in place of numbers at 0, 1, ... on the x axis, as many as there is room for, the last among them."""
    every = -(-len(names) // _MOST_NAMES)
    places = range(len(names) - 1, -1, -every)
    axes.set_xlim(-0.35, len(names) - 0.65)
    slant: Any = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(list(places), [shorten(names[place]) for place in places], **slant)
    axes.tick_params(axis="x", labelsize=7.5)


def _set_shares(axes: Axes, *, zoomed: bool) -> None:
    """A y axis of shares, from 0 as far as the curves reach if `zoomed`, else to 1."""
    if zoomed:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
    else:
        axes.set_ylim(-0.02, 1.02)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])


def _draw_curve(axes: Axes, curve: Curve, place: int) -> None:
    colour = _PALETTE[place % len(_PALETTE)]
    axes.plot(
        curve.x,
        curve.y,
        label=curve.name,
        color=colour,
        linestyle=_STYLES[place // len(_PALETTE) % len(_STYLES)],
        drawstyle="steps-mid" if curve.steps else "default",
        marker="o" if curve.marked else None,
        markersize=4,
        linewidth=1.7,
    )
    if curve.low is not None and curve.high is not None:
        if curve.marked:
            axes.vlines(curve.x, curve.low, curve.high, color=colour, linewidth=1.0, alpha=0.8)
        else:
            axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)


def _note_marks(axes: Axes, panel: Panel) -> None:
    """A word beside each mark where it covers no other and leaves no axis; with no such place the table alone has it."""
    taken: list[Bbox] = []
    for curve in panel.curves:
        for x, y, note in (each for each in zip(curve.x, curve.y, curve.notes, strict=False) if each[2]):
            word = axes.annotate(shorten(note), (x, y), (0, 0), textcoords="offset points", fontsize=7.5, alpha=0.85)
            free = ((place, box) for place, box in _boxes(axes, word.get_window_extent()) if _fits(axes, box, taken))
            found = next(free, None)
            if found is None:
                word.remove()
                continue
            (right, up, end), box = found
            word.set_position((right, up))
            word.set_horizontalalignment(end)
            taken.append(box)


def _boxes(axes: Axes, extent: Bbox) -> Iterator[tuple[_Place, Bbox]]:
    """Where a word that is now drawn at its mark, rightwards, may stand beside it, with the room that it takes there."""
    pixels = axes.figure.dpi / 72
    for right, up, end in _BESIDE:
        yield (right, up, end), extent.translated(right * pixels - (extent.width if end == "right" else 0.0), up * pixels)


def _fits(axes: Axes, box: Bbox, taken: Sequence[Bbox]) -> bool:
    """Whether a word in this box leaves no axis and covers no other."""
    inside = axes.bbox.y0 <= box.y0 and box.y1 <= axes.bbox.y1 and box.x1 <= axes.figure.bbox.x1
    return inside and not any(box.overlaps(other) for other in taken)


def _drawing(size: tuple[float, float], draw: Callable[[Figure, str], None], alt: str, caption: str) -> Drawing:
    """The figure of `size` inches that `draw` draws, given the colour of its paper."""
    svg = _page_markup(_rendered(size, draw, "svg", _PAPER, transparent=True).decode())
    return Drawing(svg, alt, caption, lambda format: _rendered(size, draw, format, "white", transparent=False))


def _rendered(
    size: tuple[float, float], draw: Callable[[Figure, str], None], format: str, paper: str, *, transparent: bool
) -> bytes:
    """The bytes of a file, drawn without pyplot's global state; they hold no time of day."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    metadata = dict.fromkeys({"svg": ("Date", "Creator"), "pdf": ("CreationDate", "Creator"), "png": ("Software",)}[format])
    tight: Any = {} if transparent else {"bbox_inches": "tight", "pad_inches": 0.04}
    with rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names may hold letters that the measuring font does not have
        figure = Figure(figsize=size)
        draw(figure, paper)
        figure.savefig(buffer, format=format, dpi=220, transparent=transparent, metadata=metadata, **tight)
    return buffer.getvalue()


def _page_markup(svg: str) -> str:
    """Matplotlib's SVG without style attributes, metadata and fixed ink, fit for a page that forbids inline styles."""
    root = ElementTree.fromstring(svg)
    prefix = f"f{hashlib.sha256(svg.encode()).hexdigest()[:8]}-"
    referenced = set(re.findall(r"#([\w.-]+)", svg))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = dict(_attributes(element, prefix, referenced))
        element.attrib.clear()
        element.attrib.update(attributes)
        element.tail = None
        if element.text is not None and not element.text.strip():
            element.text = None
    for side in ("width", "height"):
        root.set(side, f"{float(root.get(side, '0').removesuffix('pt')) * 4 / 3:.0f}")
    return ElementTree.tostring(root, encoding="unicode")


def on_paper(svg: str) -> str:
    """A drawing's markup as an SVG file: dark ink on white paper, on any page."""
    root = ElementTree.fromstring(svg)
    root.set("xmlns", "http://www.w3.org/2000/svg")
    root.set("font-family", "sans-serif")
    for element in root.iter():
        for name, value in list(element.attrib.items()):
            if value == "currentColor":
                element.set(name, "#1d1f21")
        if element.attrib.pop("class", "") == "paper":
            element.set("stroke", "#ffffff")
    root.insert(0, ElementTree.Element("rect", width="100%", height="100%", fill="#ffffff"))
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _attributes(element: ElementTree.Element, prefix: str, referenced: set[str]) -> Iterator[tuple[str, str]]:
    """The attributes of an element: names that are its own in the page, no style, the page's ink, short numbers."""
    for name, value in element.attrib.items():
        name = name.rpartition("}")[2]
        if name == "style":
            yield from _presentation(value)
        elif name == "id":
            if value in referenced:
                yield name, prefix + value
        elif name == "d":
            yield (
                name,
                " ".join(_DECIMALS.sub(lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), value).split()),
            )
        elif name != "transform" or not value.startswith("rotate(-0 "):
            yield name, value.replace("#", f"#{prefix}") if name in ("href", "clip-path") else value


def _presentation(style: str) -> Iterator[tuple[str, str]]:
    """The declarations of a style attribute as presentation attributes; the page chooses the font's family and its paper."""
    for declaration in style.split(";"):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name == "font":
            size = re.search(r"[\d.]+px", value)
            if size:
                yield "font-size", size[0]
        elif name and name not in _INHERITED:
            if value == _PAPER:
                yield "class", "paper"
            else:
                yield name, "currentColor" if value == _INK else value
