"""Charts of the report page, drawn by matplotlib: lines and bars as inline SVG, a matrix as pixels.

matplotlib is imported when the first chart is drawn. The colours are CSS variables of the page
(report.css), so that the charts follow its light and dark mode.
"""

import importlib.util
import io
import re
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from ..system.errors import InputError

WIDTH, HEIGHT = 440, 260  # in points, the units of the SVG
MOST_MARKERS = 50  # a line with more points has no markers
# colours that matplotlib draws; each is replaced by a variable of the style sheet
INK, RULE, ACCENT = "#010101", "#020202", "#030303"
VARIABLES = {INK: "var(--soft)", RULE: "var(--rule)", ACCENT: "var(--accent)"}
SETTINGS = {
    "svg.fonttype": "none", "svg.hashsalt": "hrem", "text.parse_math": False, "font.size": 12,
    "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.edgecolor": RULE, "grid.color": RULE, "axes.grid": True, "axes.grid.axis": "y",
    "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
    "axes.spines.left": False, "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-4, 6), "xtick.bottom": False, "ytick.left": False,
}  # fmt: skip
TOOLTIP = "tooltip "  # the rest of the id of such a group becomes its title


class Chart(NamedTuple):
    """A chart: its caption, its description for screen readers, and its SVG element."""

    title: str
    alt_text: str
    svg: str


def check_installed() -> None:
    """Raise InputError if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError(
            "--report: the charts cannot be drawn (found no matplotlib, expected it to be "
            "installed). Run: pip install matplotlib"
        )


def line_chart(
    name: str, title: str, points: list[tuple[float, float]], x_label: str, y_label: str
) -> Chart:
    """Draw a line through (x, y) points in their order. name: unique on the page."""

    def draw(axes):
        xs, ys = zip(*points)
        axes.plot(xs, ys, color=ACCENT, linewidth=2, clip_on=False)
        for x, y in points if len(points) <= MOST_MARKERS else ():
            axes.plot(
                x, y, "o", color=ACCENT, markersize=5, clip_on=False, gid=f"{TOOLTIP}{x:g}: {y:g}"
            )

    (first_x, first_y), (last_x, last_y) = points[0], points[-1]
    alt_text = (
        f"{title} It goes from {first_y:g} at {x_label} {first_x:g} to {last_y:g} at {last_x:g}."
    )
    return Chart(title, alt_text, _svg(name, alt_text, draw, x_label, y_label))


def bar_chart(name: str, title: str, counts: dict[str, int], x_label: str, y_label: str) -> Chart:
    """Draw a bar for each entry of {label: count}, with its percentage above it. name: unique on
    the page."""
    total = sum(counts.values())

    def draw(axes):
        from matplotlib.ticker import MaxNLocator

        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        bars = axes.bar(list(counts), list(counts.values()), 0.76, color=ACCENT, clip_on=False)
        for bar, (label, count) in zip(bars, counts.items()):
            bar.set_gid(f"{TOOLTIP}{label}: {count}")
        axes.tick_params(axis="x", labelsize=9)
        axes.bar_label(
            bars, [f"{100 * count / total:.0f}%" for count in counts.values()], padding=2
        )

    alt_text = f"{title} " + ", ".join(f"{label}: {count}" for label, count in counts.items())
    return Chart(title, alt_text, _svg(name, alt_text, draw, x_label, y_label))


def heat_map(values: np.ndarray) -> np.ndarray:
    """Convert (rows, columns) numbers to colours, from dark (lowest) to bright (highest): uint8
    (rows, columns, 3)."""
    import matplotlib

    low, high = float(values.min()), float(values.max())
    return matplotlib.colormaps["viridis"]((values - low) / (high - low or 1), bytes=True)[..., :3]


def _svg(name, alt_text, draw, x_label, y_label):
    """The SVG element of a chart. draw: function that draws it on the given axes."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    file = io.BytesIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the user's settings must not change the page
        matplotlib.rcParams.update(SETTINGS)
        figure = Figure((WIDTH / 72, HEIGHT / 72), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        draw(axes)
        axes.locator_params(axis="y", nbins=6)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        for line in axes.get_ygridlines():
            line.set_clip_on(False)
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        figure.savefig(file, format="svg", metadata={"Date": None})
    return _inline(file.getvalue(), name, alt_text)


def _inline(content, name, alt_text):
    """Convert an SVG file of matplotlib to an element of an HTML page: without namespaces and
    metadata, with ids that are unique on the page."""
    svg = ElementTree.fromstring(content)
    for element in list(svg.iter()):
        element.tail = None
        if element.tag.endswith("}text"):
            element.set("style", re.sub("font-family: [^;]*; ", "", element.get("style")))
        else:
            element.text = None  # indentation
        element.tag = element.tag.rpartition("}")[2]
        attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update(attributes)
        tooltip = attributes.get("id", "")
        if element.tag == "g" and element.attrib.pop("id", "").startswith(TOOLTIP):
            title = ElementTree.Element("title")
            title.text = tooltip.removeprefix(TOOLTIP)
            element.insert(0, title)
        elif "id" in element.attrib:
            element.set("id", f"{name}-{attributes['id']}")
        if "href" in attributes:
            element.set("href", f"#{name}-{attributes['href'][1:]}")
    for unused in [child for child in svg if child.tag in ("metadata", "defs")]:
        if unused.tag == "metadata" or not len(unused) or unused[0].tag == "style":
            svg.remove(unused)
    for key in ("width", "height", "version"):
        svg.attrib.pop(key, None)
    svg.attrib |= {"class": "chart", "role": "img", "aria-label": alt_text}
    text = ElementTree.tostring(svg, encoding="unicode")
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    return text
