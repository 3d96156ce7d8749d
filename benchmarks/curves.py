"""Curves of an ablation: rsum on dev after each epoch, one line a row, drawn from its log.

python -m benchmarks.curves benchmarks/ablation.log --rows hrem infonce-loss --out curves.svg

A line is the mean over the seeds of a row, and the band its lowest and highest. Rows without "dev
rsum" in the log, from before it was noted, are left out. Needs matplotlib.
"""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from benchmarks.ablation import DEV
from lib.results.charts import check_installed
from lib.system.distributed import print_line
from lib.system.errors import InputError, command_line
from lib.system.options import Parser


def main(argv=None):
    """The program; argv: its arguments, or those of the process."""
    options = parser().parse_args(argv)
    check_installed()
    curves = read_curves(options.log)
    rows = options.rows or list(curves)
    missing = [row for row in rows if row not in curves]
    if missing or not rows:
        raise InputError(
            f"{options.log}: no curve of {', '.join(missing) or 'any row'} (found "
            f"{', '.join(curves) or 'none'}, expected lines with {DEV!r}). Train it with "
            "python -m benchmarks.ablation"
        )
    draw({row: curves[row] for row in rows}, options.out)
    print_line(f"{options.out}: {', '.join(rows)}")


def parser():
    """The options of this script."""
    found = Parser(prog="curves", description=__doc__.split("\n\n")[0])
    found.add_argument("log", type=Path, help="log of benchmarks.ablation")
    found.add_argument("--rows", nargs="+", help="rows to draw, in order (default: all)")
    found.add_argument("--out", type=Path, required=True, help="SVG file to write")
    return found


def read_curves(log):
    """{row: (seeds, epochs) array of rsum on dev}; a seed that was trained again counts once."""
    found = defaultdict(dict)
    for line in log.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry.get(DEV):
            found[entry["row"]][entry["seed"]] = entry[DEV]
    return {row: np.array(list(seeds.values())) for row, seeds in found.items()}


def draw(curves, path):
    """Write a line chart of `curves` as SVG."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "hrem"}):
        figure = Figure(figsize=(6, 3.5), layout="constrained")
        axes = figure.add_subplot(
            xlabel="epoch", ylabel="rsum on dev", xticks=range(1, 1 + longest(curves))
        )
        for row, values in curves.items():
            epochs = np.arange(1, values.shape[1] + 1)
            (line,) = axes.plot(epochs, values.mean(0), marker="o", label=f"{row} ({len(values)})")
            low, high = values.min(0), values.max(0)
            axes.fill_between(epochs, low, high, color=line.get_color(), alpha=0.2)
        axes.grid(axis="y", alpha=0.3)
        axes.legend(frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None})


def longest(curves):
    """The largest number of validations of a row."""
    return max(values.shape[1] for values in curves.values())


if __name__ == "__main__":
    command_line(main)
