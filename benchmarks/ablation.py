"""What each part of the method is worth, on the demo data or another data set:
every row of ROWS trained with several seeds.

python -m benchmarks.ablation
    every row, 5 seeds: benchmarks/ablation.log and .md
python -m benchmarks.ablation --rows hrem gpo --epochs 1
    a quick look; its log and table stay in its run folder
python -m benchmarks.ablation --dataset f8k --schedule="--num_epochs 4 ..." --bert_path BERT
    another data set: benchmarks/ablation_f8k.log and .md

The log is the record, one run a line as JSON, and the table is made from it. A run that stands
there is not run again, so that a stopped ablation goes on where it was, on another machine too; one
that fails is noted and tried again the next time. Seeds come before rows: a part of the whole has
as many seeds of each row. Two processes with different --seeds may share the work. `python eval.py
RUNS/ROW` has all the numbers of a row.
"""

import json
import re
import traceback
from pathlib import Path

import numpy as np
import torch

import train
from benchmarks import common
from lib.system.distributed import print_line
from lib.system.errors import InputError, command_line, first_sentence
from lib.system.options import COUNT, SEED, Parser
from lib.system.run_folder import seed_folder
from lib.training.validations import read_validations

SCHEDULE = "--num_epochs 4 --warmup 100 --lr_schedules 3"  # half of the demo's
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
    "infonce+vse": "--base_loss infonce+vse --gnn_loss infonce+vse",
    "selective": "--base_loss vse --gnn_loss vse --negatives selective",
    "attention-pooling": "--pooling attention",
    "average": "--average_from 1",
    "cosine": "--schedule cosine --lr_warmup 20",
    "bigru": "--text_encoder bigru",
    "masked-padding": "--mask_padding 1",
    "vsepp": "--method vsepp",
    "gpo": "--method gpo",
    "scan": "--method scan",
    "scan-i2t": "--method scan --cross_attention i2t --aggregation lse",
    "naaf": "--method naaf",
    "chan": "--method chan",
    "scan-bert": "--method scan --text_encoder bert",
    "scan-i2t-bert": "--method scan --cross_attention i2t --aggregation lse --text_encoder bert",
    "naaf-bert": "--method naaf --text_encoder bert",
    "bf16": "--precision bf16",
    "hrem-plus": "--method hrem-plus",
    # a schedule that names a learning rate overrides that of the method; the demo has this one
    "hrem-2e-3": "--learning_rate 2e-3",
    "hrem-plus-2e-3": "--method hrem-plus --learning_rate 2e-3",
    "plus-infonce": "--method hrem-plus --learning_rate 2e-3 --base_loss infonce",
    "plus-relation": "--method hrem-plus --learning_rate 2e-3 --pooling maxk+relation",
}
NOT_ON_DEMO = ("hrem-2e-3", "hrem-plus-2e-3", "plus-infonce", "plus-relation")
HERE = Path(__file__).parent
COLUMNS = {"rsum": 1, "I2T R@1": 1, "T2I R@1": 1}  # of the table: digits after the point
TIME = "s a step"
DEV = "dev rsum"  # of every validation of the weights themselves, in order
COMPARED = "rsum less that of the first row"  # seed by seed: of the seeds that both have


def main(argv=None):
    """The program; argv: its arguments, or those of the process."""
    options = parser().parse_args(argv)
    schedule = f"--num_epochs {options.epochs}" if options.epochs else options.schedule
    name = "ablation" if options.dataset == "demo" else f"ablation_{options.dataset}"
    runs = Path(
        options.runs or (f"runs/{name}" + (f"_{options.epochs}_epochs" if options.epochs else ""))
    )
    kept = runs if options.epochs else HERE
    kept.mkdir(parents=True, exist_ok=True)
    log_path, table_path = kept / f"{name}.log", kept / f"{name}.md"
    rows = options.rows or [row for row in ROWS if row not in NOT_ON_DEMO]
    for seed in options.seeds:
        for row in rows:
            if "rsum" not in outcomes(log_path, schedule).get((row, seed), {}):
                folder = seed_folder(runs / row, seed)
                outcome = train_one(arguments_of(row, schedule), seed, folder, options)
                entry = dict(row=row, options=ROWS[row], schedule=schedule, seed=seed) | outcome
                with open(log_path, "a", encoding="utf-8") as log:
                    log.write(
                        json.dumps(entry | dict(hardware=common.hardware(options.device))) + "\n"
                    )
            text = table(outcomes(log_path, schedule), f"{options.dataset}, `{schedule}`")
            table_path.write_text(text, encoding="utf-8")
    print_line(table_path.read_text(encoding="utf-8"))


def parser():
    """The options of this script."""
    found = Parser(prog="ablation", description=__doc__.split("\n\n")[0])
    found.add_argument(
        "--rows", nargs="+", choices=ROWS, help="which rows (default: all of the demo)"
    )
    found.add_argument(
        "--seeds",
        nargs="+",
        type=SEED,
        default=list(range(5)),
        help="which seeds of each, in order",
    )
    found.add_argument(
        "--epochs", type=COUNT, help="a quick look: so many epochs, graph and rates as the demo's"
    )
    found.add_argument(
        "--runs", help="run folder (default: runs/ablation, or runs/ablation_EPOCHS_epochs)"
    )
    found.add_argument(
        "--data_path", default="data/", help="folder that holds the data set; demo_precomp is built"
    )
    found.add_argument("--dataset", default="demo", help="the data set")
    found.add_argument(
        "--schedule", default=SCHEDULE, help="options of train.py that all runs have in common"
    )
    found.add_argument("--bert_path", help="BERT of another data set than the demo's")
    found.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="as of train.py"
    )
    return found


def arguments_of(row, schedule):
    """The arguments of train.py for a row. A cosine has no epochs at which the rate decays."""
    if "--schedule cosine" in ROWS[row]:
        schedule = re.sub(r"--lr_schedules( \d+)* ?|--decay_rate \S+ ?", "", schedule)
    return f"{schedule} {ROWS[row]}"


def train_one(given, seed, folder, options):
    """Train one seed of a row, its options `given`, into `folder`.
    Returns what the log notes of it, a dict."""
    argv = f"--overwrite 1 --save_results 0 --seed {seed} {given}".split()
    argv += ["--bert_path", options.bert_path] if options.bert_path else []
    argv += ["--dataset", options.dataset]
    argv += [
        "--data_path",
        options.data_path,
        "--device",
        options.device,
        "--logger_name",
        str(folder),
    ]
    try:
        result = train.main(argv)[0]
    except Exception as error:  # whatever it is, the other runs go on
        traceback.print_exc()
        return dict(failed=f"{type(error).__name__}: {first_sentence(error)}")
    (scores,) = result.scores.values()
    values = scores.rsum, scores.image_to_text.r1, scores.text_to_image.r1, result.seconds_a_step
    dev = [one.rsum for one in read_validations(folder) if not one.is_average]
    return {name: round(value, 4) for name, value in zip([*COLUMNS, TIME], values)} | {DEV: dev}


def outcomes(log, schedule):
    """What the log holds of the rows as they are now:
    {(row, seed): its last line of this schedule, a dict}."""
    found = {}
    for number, line in enumerate(
        log.read_text(encoding="utf-8").splitlines() if log.exists() else [], start=1
    ):
        try:
            entry = json.loads(line)
            if (entry["options"], entry["schedule"]) == (ROWS.get(entry["row"]), schedule):
                found[entry["row"], entry["seed"]] = entry
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{log}: line {number} is not what this program writes ({first_sentence(error)}), "
                "expected JSON with row, options, schedule and seed; take the line out"
            ) from error
    return found


def table(found, title):
    """The Markdown table of the rows that have a finished or a failed run; found: of `outcomes`;
    title: the data set and the schedule."""
    lines = [
        (
            f"{title}; test split, the epoch best on dev; mean ± sample standard "
            f"deviation over seeds, but for {TIME}: of the quickest seed.\n"
        ),
        (
            f"| row | options | seeds | {' | '.join([*COLUMNS, COMPARED, TIME])} "
            f"|\n{'|---' * (5 + len(COLUMNS))}|"
        ),
    ]
    for row, given in ROWS.items():
        of_row = [found[key] for key in sorted(found) if key[0] == row]
        finished = [entry for entry in of_row if "rsum" in entry]
        failed = [
            f"seed {entry['seed']} FAILED: {entry['failed']}"
            for entry in of_row
            if "failed" in entry
        ]
        if of_row:
            seeds = "; ".join([str(len(finished)), *failed]).replace("|", "\\|")
            cells = [
                spread([entry[name] for entry in finished], digits)
                for name, digits in COLUMNS.items()
            ]
            cells += [spread(differences(found, row), 1)]
            cells += [f"{min(entry[TIME] for entry in finished):.3f}" if finished else ""]
            lines.append(f"| {row} | `{given or 'defaults'}` | {seeds} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def differences(found, row):
    """rsum of a row less that of the first row, of every seed that both have;
    none for the first row itself."""
    rsums = {key: entry["rsum"] for key, entry in found.items() if "rsum" in entry}
    first = next(iter(ROWS))
    return [
        rsum - rsums[first, seed]
        for (name, seed), rsum in rsums.items()
        if name == row != first and (first, seed) in rsums
    ]


def spread(values, digits):
    """Such as "231.4 ± 2.1"; without the deviation for one value, empty for none."""
    if not values:
        return ""
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


if __name__ == "__main__":
    command_line(main)
