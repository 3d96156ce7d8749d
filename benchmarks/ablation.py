"""What each part of the method is worth on the demo data: every row of ROWS trained with several seeds.

python -m benchmarks.ablation                               every row, 5 seeds: benchmarks/ablation.md and .log
python -m benchmarks.ablation --rows hrem gpo --epochs 1    a quick look; its table stays in its run folder

A run that has finished is not run again, so that a stopped ablation goes on where it was, and one that fails is noted
and left: run folders are RUNS/ROW/seed0, ..., and `python eval.py RUNS/ROW` has all the numbers of a row.
"""

import json
import traceback
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import train
from benchmarks import common
from lib.checkpoint import seed_folder
from lib.errors import command_line, first_sentence
from lib.logs import say
from lib.options import COUNT, Parser
from lib.report import METRICS

ROWS = {
    "hrem": "",
    "standalone": "--method hrem-standalone",
    "no-interaction": "--interaction none",
    "intra-modal": "--relation intra",
    "inter-modal": "--relation inter",
    "no-relevance": "--relevance 0",
    "no-connection": "--connection 0",
    "squared-distance": "--distance l2sq",
    "no-regulariser": "--reg_loss_weight 0",
    "neighbour-batches": "--batch_sampling neighbour",
    "mean": "--pooling mean",
    "max": "--pooling max",
    "maxk": "--pooling maxk",
    "gpo-pooling": "--pooling gpo",
    "mean+relation": "--pooling mean+relation",
    "max+relation": "--pooling max+relation",
    "gpo+relation": "--pooling gpo+relation",
    "vse-loss": "--base_loss vse --gnn_loss vse",
    "infonce-loss": "--base_loss infonce --gnn_loss infonce",
    "bigru": "--text_encoder bigru",
    "masked-padding": "--mask_padding 1",
    "vsepp": "--method vsepp",
    "gpo": "--method gpo",
}
HERE = Path(__file__).parent
TIMES = "times.json"  # in a run folder, beside METRICS: the logs of training hold no times


class Outcome(NamedTuple):
    """What a finished run came to: on the test split, and in training."""

    rsum: float
    i2t_r1: float
    t2i_r1: float
    seconds_a_step: float


def main(argv=None):
    """The program; argv: its arguments, or those of the process."""
    options = parser().parse_args(argv)
    runs = Path(options.runs or ("runs/ablation" + (f"_{options.epochs}_epochs" if options.epochs else "")))
    kept = runs if options.epochs else HERE
    kept.mkdir(parents=True, exist_ok=True)
    failures = {}
    for row in options.rows:
        for seed in range(options.seeds):
            folder = Path(seed_folder(runs / row, seed))
            if outcome(folder) is None:
                message = train_one(row, seed, folder, options)
                failures |= {(row, seed): message} if message else {}
                with open(kept / "ablation.log", "a", encoding="utf-8") as log:
                    log.write(line(row, seed, outcome(folder), message, options.device))
            (kept / "ablation.md").write_text(table(runs, failures, options), encoding="utf-8")
    say(table(runs, failures, options))


def parser():
    """The options of this script."""
    found = Parser(prog="ablation", description=__doc__.splitlines()[0])
    found.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="which rows")
    found.add_argument("--seeds", type=COUNT, default=5, help="how many seeds of each, from 0")
    found.add_argument("--epochs", type=COUNT, help="fewer epochs, for a quick look")
    found.add_argument("--runs", help="run folder (default: runs/ablation, or runs/ablation_EPOCHS_epochs)")
    found.add_argument("--data_path", default="data/", help="folder that holds demo_precomp, or will")
    found.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="as of train.py")
    return found


def train_one(row, seed, folder, options):
    """Train one seed of a row into `folder`. Returns what went wrong, or None."""
    argv = f"--dataset demo --overwrite 1 --save_results 0 --seed {seed} {ROWS[row]}".split()
    argv += ["--data_path", options.data_path, "--device", options.device, "--logger_name", str(folder)]
    argv += ["--num_epochs", str(options.epochs)] if options.epochs else []
    try:
        result = train.main(argv)[0]
    except Exception as error:  # whatever it is, the other runs go on
        traceback.print_exc()
        return f"{type(error).__name__}: {first_sentence(error)}"
    (folder / TIMES).write_text(json.dumps({"seconds_a_step": result.seconds_a_step}))
    return None


def line(row, seed, found, message, device):
    """A line of the log: what came of one run."""
    if message:
        numbers = f"FAILED: {message}"
    else:
        numbers = (
            f"rsum {found.rsum:.1f}, I2T R@1 {found.i2t_r1:.1f}, T2I R@1 {found.t2i_r1:.1f}, "
            f"{found.seconds_a_step:.3f} s a step"
        )
    return f"{row} ({ROWS[row] or 'defaults'}) seed {seed}: {numbers}; {common.hardware(device)}\n"


def outcome(folder):
    """The `Outcome` of the run in a folder, or None if it has not finished."""
    metrics = json.loads((folder / METRICS).read_text()) if (folder / METRICS).exists() else {}
    if "test" not in metrics:
        return None
    (scores,) = metrics["test"]["scores"].values()
    times = json.loads((folder / TIMES).read_text()) if (folder / TIMES).exists() else {}
    seconds = times.get("seconds_a_step", np.nan)
    return Outcome(scores["rsum"], scores["i2t"]["r1"], scores["t2i"]["r1"], seconds)


def table(runs, failures, options):
    """The Markdown table of every row that has a finished or a failed run; failures: {(row, seed): message}."""
    lines = [
        f"Demo data, test split, best epoch on dev of {options.epochs or 'all'}; mean ± sample standard deviation over "
        f"seeds. {common.hardware(options.device)}\n",
        "| row | options | seeds | rsum | I2T R@1 | T2I R@1 | s a step |\n|---|---|---|---|---|---|---|",
    ]
    for row, given in ROWS.items():
        found = [outcome(folder) for folder in (runs / row).glob("seed*")]
        found = np.array([one for one in found if one]).reshape(-1, len(Outcome._fields))
        failed = [f"seed {seed} FAILED: {message}" for (name, seed), message in failures.items() if name == row]
        if len(found) or failed:
            seeds = "; ".join([str(len(found)), *failed]).replace("|", "\\|")
            cells = " | ".join(spread(column, digits) for column, digits in zip(found.T, (1, 1, 1, 3)))
            lines.append(f"| {row} | `{given or 'defaults'}` | {seeds} | {cells} |")
    return "\n".join(lines) + "\n"


def spread(values, digits):
    """Such as "231.4 ± 2.1"; without the deviation for one value, empty for none."""
    if not len(values):
        return ""
    deviation = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{deviation}"


if __name__ == "__main__":
    command_line(main)
