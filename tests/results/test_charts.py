"""Charts of the report page, and PNG images."""

import re
import sys

import matplotlib
import numpy as np
import pytest
from pages import Page, read_png

from lib.results import charts
from lib.system import images
from lib.system.errors import InputError


def line_chart(points, name="loss"):
    return charts.line_chart(name, "a <title>", points, "step", "loss")


def texts(chart):
    return Page(chart.svg).texts("text")


def coordinates(svg):
    """Every point of the paths that stand in the drawing itself."""
    svg = re.sub(r"<defs>.*?</defs>", "", svg)
    pairs = re.findall(r"[ML] (\S+) (\S+)", "".join(re.findall(r' d="(.*?)"', svg)))
    pairs += re.findall(r'<use [^>]*x="(\S+)" y="(\S+)"', svg)
    return np.array(pairs, dtype=float)


@pytest.mark.parametrize(
    "low, high", [(0, 1), (0, 7), (-3, 12.5), (1e-5, 3e-5), (0, 600), (4, 4000), (0, 1e9)]
)
def test_ticks_are_few_and_short(low, high):
    labels = texts(line_chart([(1, low), (2, high)]))
    ticks = [label for label in labels[labels.index("step") + 1 :] if label != "loss"]
    numbers = [label for label in ticks if "e" not in label]  # the scale, such as 1e9
    assert 3 <= len(numbers) <= 8 and len(set(numbers)) == len(numbers)
    assert all(len(label.strip("−").replace(".", "").rstrip("0")) <= 4 for label in numbers)


@pytest.mark.parametrize(
    "points",
    [
        [(10, 3.0)],
        [(1, 0.0), (2, 0.0)],
        [(1, -1e30), (10**14, 1e30)],
        [(n, n % 7) for n in range(200)],
    ],
)
def test_every_line_is_drawn_inside_its_chart(points):
    chart = line_chart(points)
    found = coordinates(chart.svg)
    assert len(found) >= min(len(points), 50) and np.isfinite(found).all()
    assert (found >= 0).all() and (found <= (charts.WIDTH, charts.HEIGHT)).all()
    assert len(Page(chart.svg).all("use")) == (len(points) if len(points) <= 50 else 0)


def test_a_point_stands_where_its_numbers_say():
    uses = Page(line_chart([(0, 0.0), (1, 1.0), (4, 3.0)]).svg).all("use")
    xs, ys = (np.array([float(one[1][key]) for one in uses]) for key in "xy")
    assert (xs[2] - xs[0]) / (xs[1] - xs[0]) == pytest.approx(4, rel=1e-4)
    assert (ys[2] - ys[0]) / (ys[1] - ys[0]) == pytest.approx(3, rel=1e-4) and ys[1] < ys[0]


def test_bars_are_as_high_as_their_counts():
    counts = {"1": 20, "2": 5, "3–5": 0, "> 500": 15}
    chart = charts.bar_chart("ranks", "Ranks.", counts, "rank", "queries")
    page, heights = Page(chart.svg), []
    for label, count in counts.items():
        assert f"{label}: {count}" in page.texts("title")
    for path in re.findall(r"</title><path d=\"(.*?)\"", chart.svg):
        heights.append(np.ptp([float(y) for y in re.findall(r"[ML] \S+ (\S+)", path)]))
    np.testing.assert_allclose(np.array(heights) / heights[0], [1, 0.25, 0, 0.75], atol=1e-4)
    assert {"50%", "12%", "0%", "38%"} <= set(texts(chart))
    assert chart.alt_text == "Ranks. 1: 20, 2: 5, 3–5: 0, > 500: 15"


def test_colours_are_those_of_the_style_sheet():
    """A colour of matplotlib's own could not be read in dark mode."""
    for chart in (line_chart([(1, 2), (2, 3)]), charts.bar_chart("b", "B.", {"1": 2}, "x", "y")):
        colours = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", chart.svg))
        assert colours == {"none", *charts.VARIABLES.values()}


def test_a_chart_goes_into_a_page():
    found = Page(line_chart([(1, 2), (2, 3)]).svg + line_chart([(1, 2), (2, 3)], "rate").svg)
    assert len(set(found.ids)) == len(found.ids) == 2  # one marker each
    assert {one[1]["href"][1:] for one in found.all("use")} == set(found.ids)
    assert not re.search(r"url\(|xmlns|http|metadata|<style", line_chart([(1, 2)]).svg)


def test_settings_of_the_user_change_nothing():
    points = [(1, 2.0), (5, 1.0)]
    expected = line_chart(points).svg
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert line_chart(points).svg == expected
        assert matplotlib.rcParams["font.size"] == 30


def test_a_missing_matplotlib_is_told_in_a_line(monkeypatch):
    charts.check_installed()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match="found no matplotlib.*pip install matplotlib$"):
        charts.check_installed()


def test_a_png_holds_its_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(read_png(images.encode_png(pixels)), pixels)


def test_heat_goes_from_dark_to_bright():
    found = charts.heat_map(np.array([[0.0, 0.5, 1.0]]))
    assert found.dtype == np.uint8 and found.shape == (1, 3, 3)
    np.testing.assert_allclose(found[0], [(68, 1, 84), (33, 145, 140), (253, 231, 37)], atol=1)
    assert (charts.heat_map(np.ones((2, 2))) == found[0, 0]).all()
