"""Charts for a page that opens from disk: lines and bars as inline SVG, a matrix as PNG;
nothing is loaded.

Colours are left to the page: lines, bars and text bear the classes `line`, `bar`, `grid` and take
`currentColor`.
"""

import base64
import math
import struct
import zlib
from html import escape

import numpy as np

WIDTH, HEIGHT = 520, 290
LEFT, RIGHT, TOP, BOTTOM = 70, 14, 12, 44  # margins
# dark is low, bright is high
COLOURS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))


def lines(title, points, x_label, y_label):
    """A line through (x, y) points in order, as a figure; title: its caption,
    and its text for those who see none."""
    (x_low, x_high), (y_low, y_high) = (_limits(values) for values in zip(*points))

    def place(x, y):
        return (
            LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM),
        )

    parts = [_horizontal(place(0, tick)[1], f"{tick:g}") for tick in ticks(y_low, y_high)]
    parts += [_below(place(tick, 0)[0], f"{tick:g}") for tick in ticks(x_low, x_high)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
    parts.append(f'<polyline class="line" points="{path}"/>')
    if len(points) <= 50:  # a dot for each, with its numbers for the pointer
        for x, y in points:
            at = place(x, y)
            parts.append(
                f'<circle class="dot" cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="3"><title>{x:g}: '
                f"{y:g}</title></circle>"
            )
    first, last = points[0], points[-1]
    alt_text = f"{title}: from {first[1]:g} at {x_label} {first[0]:g} to {last[1]:g} at {last[0]:g}"
    return _figure(title, alt_text, parts, x_label, y_label)


def bars(title, heights, x_label, y_label):
    """A bar for each entry of {label: count}, as a figure, its share of all written above it."""
    total, highest = sum(heights.values()), max(heights.values())
    step, scale = (WIDTH - LEFT - RIGHT) / len(heights), (HEIGHT - TOP - BOTTOM - 14) / highest
    parts = [_horizontal(HEIGHT - BOTTOM - tick * scale, f"{tick:g}") for tick in ticks(0, highest)]
    for index, (label, count) in enumerate(heights.items()):
        left, height = LEFT + (index + 0.12) * step, count * scale
        middle = left + 0.38 * step
        parts.append(
            f'<rect class="bar" x="{left:.1f}" y="{HEIGHT - BOTTOM - height:.1f}" '
            f'width="{0.76 * step:.1f}" '
            f'height="{height:.1f}"><title>{escape(label)}: {count}</title></rect>'
            f'<text x="{middle:.1f}" y="{HEIGHT - BOTTOM - height - 5:.1f}" text-anchor="middle">'
            f"{100 * count / total:.0f}%</text>"
        )
        parts.append(_below(middle, label))
    alt_text = f"{title}: " + ", ".join(f"{label}: {count}" for label, count in heights.items())
    return _figure(title, alt_text, parts, x_label, y_label)


def ticks(low, high, about=5):
    """Round numbers from `low` to `high`, about so many; at least one."""
    rough = (high - low) / about
    unit = 10 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough)
    return [
        round(n * step, 12)
        for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def _limits(values):
    """Where an axis begins and ends, never at one place."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2)


def _figure(title, alt_text, parts, x_label, y_label):
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return (
        (
            f'<figure><svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{escape(alt_text)}">'
        )
        + "".join(parts)
        + (
            f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" '
            f'text-anchor="middle">{escape(x_label)}</text>'
            f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 '
            f'{middle})">{escape(y_label)}</text>'
            f"</svg><figcaption>{escape(title)}</figcaption></figure>"
        )
    )


def _horizontal(y, label):
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>'
    )


def _below(x, label):
    return (
        f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{escape(label)}</text>'
    )


def heat(values):
    """(rows, columns) numbers as colours from dark (lowest) to bright (highest): uint8
    (rows, columns, 3)."""
    low, high = float(values.min()), float(values.max())
    places = (values - low) / (high - low or 1) * (len(COLOURS) - 1)
    channels = [np.interp(places, range(len(COLOURS)), channel) for channel in zip(*COLOURS)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def grey(values):
    """(rows, columns) numbers as greys from black (lowest) to white (highest): uint8
    (rows, columns, 1)."""
    low, high = float(values.min()), float(values.max())
    return (255 * (values - low) / (high - low or 1)).round().astype(np.uint8)[..., None]


def png(pixels):
    """The bytes of a PNG file of uint8 (rows, columns, 3), or 1 for greys."""
    rows, columns, channels = pixels.shape
    # filter 0
    lines_of = np.concatenate([np.zeros((rows, 1), np.uint8), pixels.reshape(rows, -1)], axis=1)
    # 8 bits, grey or RGB
    header = struct.pack(">IIBBBBB", columns, rows, 8, 0 if channels == 1 else 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines_of.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
        for name, content in parts
    )


def data_uri(kind, content):
    """Bytes of a file of a MIME type, to stand in a page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
