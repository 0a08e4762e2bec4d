from __future__ import annotations

import io
import re
import struct
from dataclasses import replace
from itertools import combinations
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.image import imread

from advbench.reports import figures
from advbench.reports.images import around_grey, circled, image_grid, image_section, png
from advbench.reports.section import Drawing


def _map(values, **changes):
    values = np.array(values)
    options = {
        "rows": [f"row {i}" for i in range(len(values))],
        "columns": [f"column {i}" for i in range(values.shape[1])],
        "words": [[""] * values.shape[1]] * len(values),
        "caption": "caption",
        "alt": "alt",
    }
    return figures.heat_map(values, **(options | changes))


def _texts(drawing):
    return ["".join(element.itertext()) for element in ElementTree.fromstring(drawing.svg).iter("text")]


def test_a_heat_map_writes_every_share_as_a_percentage():
    drawing = _map([[0.0, 0.256], [1.0, np.nan]], words=[["", ""], ["", "failed"]])
    assert {"0.0", "25.6", "100.0", "failed", "row 0", "column 1"} <= set(_texts(drawing))


def test_more_robust_cells_are_darker():
    colours = re.findall(r'<path[^>]*fill="#([0-9a-f]{6})"', _map([[0.0, 0.5, 1.0]]).svg)
    brightness = [sum(bytes.fromhex(colour)) for colour in colours[:3]]
    assert brightness == sorted(brightness, reverse=True)
    assert len(set(brightness)) == 3


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", r"$\frac{1}{$", "a & b", "日本語", "x" * 200])
def test_names_are_shown_as_they_are_or_shortened(name):
    curve = figures.Curve(name, np.array([0.0, 1.0]), np.array([1.0, 0.0]))
    for drawing in (
        _map([[0.5]], rows=[name], columns=[name]),
        figures.line_plots([figures.Panel(name, (curve,))], x_label="x", y_label="y", caption="", alt=""),
    ):
        assert _texts(drawing).count(figures.shorten(name)) == 2
        assert "<script" not in drawing.svg


def test_figures_take_ink_and_paper_from_the_page_and_bring_no_style_of_their_own():
    drawing = _map([[0.1, 0.9]], framed=[(0, 0)], divider=1)
    assert "style" not in drawing.svg
    assert "currentColor" in drawing.svg
    assert not {figures._INK, figures._PAPER} & set(re.findall(r"#[0-9a-f]{6}", drawing.svg))
    fonts = [element for element in ElementTree.fromstring(drawing.svg).iter() if "font-family" in element.attrib]
    assert fonts == []


def test_figures_are_repeatable_and_their_names_do_not_collide():
    first, second = _map([[0.1]]), _map([[0.2]])
    assert first == _map([[0.1]])
    identifiers = [set(re.findall(r'id="([^"]+)"', drawing.svg)) for drawing in (first, second)]
    assert all(identifiers)
    assert not identifiers[0] & identifiers[1]
    for drawing in (first, second):
        assert set(re.findall(r'#([\w.-]+)[")]', drawing.svg)) <= set(re.findall(r'id="([^"]+)"', drawing.svg)) | set(
            re.findall(r"#([0-9a-f]{6})\b", drawing.svg)
        )


def test_drawing_leaves_no_global_state():
    from matplotlib import pyplot

    before = dict(rcParams)
    _map([[0.1]])
    figures.line_plots(
        [figures.Panel("p", (figures.Curve("c", np.array([0.0]), np.array([1.0]), marked=True),), (0.3,))] * 4,
        x_label="x",
        y_label="y",
        caption="",
        alt="",
    )
    assert dict(rcParams) == before
    assert pyplot.get_fignums() == []


def test_a_plot_without_curves_is_drawn():
    assert "nothing" in _texts(
        figures.line_plots([figures.Panel("nothing", ())], x_label="x", y_label="y", caption="", alt="")
    )


@pytest.mark.parametrize("c", [1, 2, 3])
def test_png_holds_the_pixels(c):
    image = np.random.default_rng(c).random((5, 4, c)).astype(np.float32)
    image[2, 3] = np.nan
    image[0, 0], image[0, 1] = -0.5, 1.5
    back = imread(io.BytesIO(png(image)))
    grey = image if c == 3 else image.mean(axis=2, keepdims=True).repeat(3, axis=2)
    opaque = ~np.isnan(image).any(axis=2)
    colour = back[..., :3] if back.shape[2] == 4 else back[..., :1].repeat(3, axis=2)
    np.testing.assert_allclose(colour[opaque], np.clip(grey, 0, 1)[opaque], atol=0.5 / 255 + 1e-6)
    np.testing.assert_array_equal(back[..., -1] == 1, opaque)


def test_grids_show_clean_adversarial_and_magnified_noise(default_cells):
    section = image_section(default_cells.scored)
    (grid,) = [one for one in section.figures if one.caption == "white-box pgd, shown to none"]
    assert grid.rows[0] == "clean"
    assert grid.columns[7].startswith("7 → ")
    image = imread(io.BytesIO(grid.png))[..., 0]
    assert image.shape == (3 * 29, 10 * 29)
    (cell,) = [
        cell
        for cell in default_cells.scored
        if (cell.record.matrix, cell.record.attack["label"], cell.record.target["label"]) == ("white-box", "pgd", "none")
    ]
    clean, adversarial = cell.gallery.clean[7, 0], cell.gallery.adversarial[7, 0]
    gain = 0.5 / np.abs(cell.gallery.adversarial - cell.gallery.clean).max()
    assert grid.rows == ("clean", "adversarial", f"noise × {gain:.3g}")
    columns = slice(7 * 29, 7 * 29 + 28)
    for row, expected in enumerate((clean, adversarial, 0.5 + gain * (adversarial - clean))):
        np.testing.assert_allclose(image[row * 29 : row * 29 + 28, columns], expected, atol=0.5 / 255 + 1e-5)


def test_transfers_of_one_craft_are_shown_once(default_cells):
    section = image_section(default_cells.scored)
    captions = [grid.caption for grid in section.figures]
    assert len(captions) == 12 + 12 + 12
    assert sum(caption.startswith("transfer pgd from") for caption in captions) == 4


def test_without_images_there_is_no_section(default_cells):
    assert image_section([replace(cell, pictures=None) for cell in default_cells.scored]) is None


def test_a_curve_can_have_a_band_and_a_scale_of_its_own():
    x = np.array([1.0, 2.0, 3.0])
    curve = figures.Curve("error", x, 100 * x, low=90 * x, high=110 * x)
    drawn = [
        figures.line_plots([figures.Panel("", (one,))], x_label="", y_label="", caption="", alt="", shares=False).svg
        for one in (curve, figures.Curve("error", x, 100 * x))
    ]
    assert [svg.count("fill-opacity") for svg in drawn] == [1, 0]
    assert "300" in _texts(Drawing(drawn[0], "", ""))
    assert "100%" not in drawn[0]


def test_a_grid_of_images_is_as_large_as_its_rows_and_columns():
    images = np.random.default_rng(0).random((2, 3, 1, 4, 5)).astype(np.float32)
    names = {"alt": "", "caption": "", "group": ""}
    grid = image_grid(images, rows=("a", "b"), columns=("1", "2", "3"), **names)
    width, height = struct.unpack(">II", grid.png[16:24])
    assert (height, width) == (2 * (4 + 1), 3 * (5 + 1))
    with pytest.raises(ValueError, match=r"Expected images of shape \(3, 2, c, h, w\), got \(2, 3, 1, 4, 5\)"):
        image_grid(images, rows=("a", "b", "c"), columns=("1", "2"), **names)


def test_changes_are_shown_around_grey():
    change = np.array([-0.2, 0.0, 0.1], np.float32)
    np.testing.assert_allclose(around_grey(change), [0.0, 0.5, 0.75], atol=1e-6)
    np.testing.assert_allclose(around_grey(change, 1.0), [0.4, 0.5, 0.55], atol=1e-6)
    np.testing.assert_array_equal(around_grey(0 * change), [0.5, 0.5, 0.5])


def test_a_ring_lies_around_the_pixel_that_changed_most():
    clean = np.zeros((2, 1, 12, 12), dtype=np.float32)
    change = np.zeros_like(clean)
    change[0, 0, 5, 6] = -0.3
    change[0, 0, 1, 1] = 0.2
    shown = circled(clean + 1, change)
    ring = {(y, x) for y, x in zip(*np.nonzero(shown[0, 0] == 0.5), strict=True)}
    assert ring == {(y, x) for y in range(12) for x in range(12) if 1.9**2 < (y - 5) ** 2 + (x - 6) ** 2 < 2.9**2}
    assert (5, 6) not in ring
    assert (shown[1] == 1).all()  # nothing changed


@pytest.fixture
def drawn(monkeypatch):
    """The matplotlib figure behind a plot."""

    def draw(panels, **settings):
        kept = []

        def keep(size, drawing, alt, caption):
            made = Figure(figsize=size)
            drawing(made, "white")
            kept.append(made)

        with monkeypatch.context() as patch:
            patch.setattr(figures, "_drawing", keep)
            figures.line_plots(panels, x_label="x", y_label="y", caption="", alt="", **settings)
        return kept[0]

    return draw


def _panel(name, *heights, notes=()):
    x = np.array([0.1, 0.1001, 0.1002])[: len(heights[0])]
    return figures.Panel(
        name, tuple(figures.Curve(f"model {i}", x, np.array(y), marked=True, notes=notes) for i, y in enumerate(heights))
    )


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_an_axis_that_panels_share_reaches_the_highest_of_all(drawn, order):
    panels = [_panel("low", [0.01, 0.03]), _panel("high", [0.2, 0.4])]
    made = drawn([panels[i] for i in order], zoomed=True)
    for axes in made.axes[:2]:
        assert axes.get_ylim()[0] == 0
        assert 0.4 < axes.get_ylim()[1] < 0.5


def test_a_model_keeps_its_colour_in_all_figures(drawn):
    def colours(*names):
        curves = tuple(figures.Curve(name, np.array([0.0, 1.0]), np.array([0.0, 1.0])) for name in names)
        return {line.get_label(): line.get_color() for line in drawn([figures.Panel("", curves)]).axes[0].get_lines()}

    with figures.same_colours(["a", "b", "c"]):
        all_, two, other = colours("a", "b", "c"), colours("c", "new", "b"), colours("x", "y")
    assert len(set(all_.values())) == 3
    assert (two["c"], two["b"]) == (all_["c"], all_["b"])
    assert two["new"] not in all_.values()
    assert list(other.values()) == list(colours("a", "b").values())  # figures of other things begin anew
    assert colours("c")["c"] == all_["a"]  # nothing is left behind


def test_words_beside_marks_cover_no_other(drawn):
    made = drawn([_panel("", [0.5, 0.5, 0.5], [0.501, 0.5, 0.499], notes=("pgd", "apgd", "fgsm"))])
    boxes = [text.get_window_extent() for text in made.axes[0].texts]
    assert len(boxes) == 6
    assert all(made.axes[0].bbox.y0 <= box.y0 and box.y1 <= made.axes[0].bbox.y1 for box in boxes)
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_named_places_are_written_as_there_is_room_and_the_last_always(drawn):
    def written(count):
        curve = figures.Curve("model", np.arange(count), np.linspace(0, 1, count), marked=True)
        made = drawn([figures.Panel("", (curve,))], x_names=[f"v{i}" for i in range(count)])
        axes = made.axes[0]
        return {label.get_text(): place for label, place in zip(axes.get_xticklabels(), axes.get_xticks(), strict=True)}

    assert written(3) == {"v0": 0, "v1": 1, "v2": 2}
    assert written(25) == {f"v{i}": i for i in range(0, 25, 3)}
    assert "v99" in written(100)
    assert len(written(100)) <= 12
