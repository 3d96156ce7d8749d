"""The options of train.py and eval.py, the demo's settings, and checks of several options.

The options of the losses and of the graph are in lib/objective/options.py. Nothing here imports
torch, so that --help and refused options do not wait for it.
"""

import argparse
import os
import shlex
import signal
import sys
from pathlib import Path

from lib.model.options import PRECISIONS, ModelOptions
from lib.objective.options import ObjectiveOptions, add_options
from lib.results import export
from lib.system.console import one_line, printable
from lib.system.errors import InputError, command_line
from lib.system.options import (
    COUNT,
    COUNT_OR_NONE,
    FRACTION,
    POSITIVE,
    SEED,
    SIZE,
    SWITCH,
    Number,
    Parser,
    add_fields,
    is_given,
    program_name,
)
from lib.system.run_folder import check_name, seed_folder
from lib.training.presets import demo_bert

TRAINING_EXAMPLES = """examples:
  python train.py --dataset demo
  python train.py --data_path data/ --dataset f30k --logger_name runs/f30k_test
  python train.py --dataset f30k --logger_name runs/f30k_test --resume auto"""
EVALUATION_EXAMPLES = """examples:
  python eval.py --dataset demo
  python eval.py runs/f30k_test runs/f30k_other
  python eval.py runs/f30k_test --query 'two dogs in the snow'"""

# What `--dataset demo` sets unless it is given by hand: two minutes on two CPU cores instead of
# hours on a GPU.
DEMO = dict(
    logger_name="runs/demo_test",
    num_epochs=8,
    warmup=200,
    embed_size=128,
    nhead=4,
    dropout=0.2,
    learning_rate=2e-3,
    lr_schedules=[6],
    workers=0,
    log_step=20,
)

# What `--method` sets unless it is given by hand: the model and the losses, never size or schedule
# (those are DEMO's).
METHODS = {
    "hrem": dict(),  # every default
    "hrem-standalone": dict(interaction="standalone"),
    "vsepp": dict(interaction="none", pooling="mean", base_loss="vse", max_violation=True),
    "gpo": dict(interaction="none", pooling="gpo", base_loss="vse", vse_mean_warmup_epochs=1),
}
SAMPLING = ("random", "neighbour")
RESULTS_FORMS = (
    "1: save npts and sims as results_DATASET.npy; published: "
    "as a pickled dict, for existing scripts"
)
LARGEST_BATCH, MOST_EPOCHS = 2**16, 10**6
# of --bootstrap; results and queries of a search or a report
MOST_SAMPLES, MOST_SHOWN = 10**6, 10**4


def training_parser():
    """The parser of train.py."""
    text = "Train HREM and report retrieval on the test split."
    parser = Parser(prog=program_name("train.py"), description=text, epilog=TRAINING_EXAMPLES)
    data = parser.add_argument_group("data (docs/method.md, section 1)")
    add_data_options(data)
    data.add_argument(
        "--bert_path",
        default="bert-base-uncased",
        help="BERT: a local folder or a hub name",
    )
    data.add_argument(
        "--min_word_count",
        type=COUNT,
        default=4,
        help="bigru: words with fewer occurrences in the training captions become <unk>",
    )
    add_fields(data, ModelOptions, "strip_accents")
    data.add_argument(
        "--glove",
        help="bigru: initialise the word embeddings from this text file (GloVe, "
        "word2vec or fastText)",
    )
    data.add_argument(
        "--img_dim",
        type=SIZE,
        default=argparse.SUPPRESS,
        help="size D of a region feature; read from the data, so you need not give it",
    )
    data.add_argument(
        "--size_augment",
        type=SWITCH,
        default=1,
        help="1: drop a fifth of the regions of each image during training",
    )
    data.add_argument(
        "--workers",
        type=COUNT_OR_NONE,
        default=8,
        help="number of data loader processes; the results do not depend on it",
    )
    data.add_argument(
        "--val_split",
        default="dev",
        help="split used to select the best epoch (published code: test or testall)",
    )
    data.add_argument(
        "--test_split",
        help="split of the final table, or none for no table (default: testall if "
        "the folder has it, else test)",
    )

    run = parser.add_argument_group("run")
    run.add_argument(
        "--logger_name",
        default="runs/test",
        help="run folder: logs, TensorBoard curves and results",
    )
    run.add_argument(
        "--model_name",
        default=argparse.SUPPRESS,
        help="folder for checkpoints (default: the run folder)",
    )
    run.add_argument(
        "--overwrite", type=SWITCH, default=0, help="1: overwrite an existing run in the run folder"
    )
    run.add_argument(
        "--resume",
        default="none",
        help="auto: resume from last.pth in the run folder, if it exists; or the "
        "path of such a file",
    )
    run.add_argument(
        "--init_from",
        metavar="CHECKPOINT",
        help=(
            "initialise the weights from a trained model: a run folder or a "
            "checkpoint file, ours or published"
        ),
    )
    run.add_argument(
        "--allow_changed_data",
        type=SWITCH,
        default=0,
        help=(
            "1: --resume continues even if the data or BERT have changed since the run was started"
        ),
    )
    run.add_argument(
        "--save_step", type=COUNT_OR_NONE, default=0, help="N > 0: also save last.pth every N steps"
    )
    run.add_argument(
        "--seed", type=SEED, default=argparse.SUPPRESS, help="random seed (default: 0)"
    )
    run.add_argument(
        "--seeds",
        type=SEED,
        nargs="+",
        default=argparse.SUPPRESS,
        help=("train one run per seed, in LOGGER_NAME/seedN; replaces --seed"),
    )
    run.add_argument(
        "--log_step", type=COUNT, default=200, help="steps between two lines of the training log"
    )
    run.add_argument(
        "--val_step", type=COUNT_OR_NONE, default=0, help="N > 0: also validate every N steps"
    )
    run.add_argument(
        "--save_results", type=results_form, default=1, help=f"of the test split: {RESULTS_FORMS}"
    )
    add_device_options(run)
    run.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="precision of the encoders in training; losses, relations and "
        "evaluation always use fp32",
    )
    run.add_argument(
        "--deterministic",
        type=SWITCH,
        default=0,
        help="1: use deterministic kernels only (GPU; slower)",
    )
    run.add_argument(
        "--compile",
        type=SWITCH,
        default=0,
        help="1: compile the encoders with torch.compile; the first steps take minutes",
    )
    run.add_argument(
        "--multi_gpu",
        type=SWITCH,
        default=0,
        help="option of the published code; 1: print the torchrun command to use instead",
    )

    model = parser.add_argument_group("embedding (docs/method.md, section 3)")
    model.add_argument(
        "--method",
        choices=METHODS,
        default="hrem",
        help=(
            "preset of model and losses: hrem (the paper), hrem-standalone (its "
            "other interaction), vsepp (VSE++), gpo (VSE-infinity); options that "
            "you give override it"
        ),
    )
    add_fields(
        model, ModelOptions, "embed_size", "text_encoder", "word_dim", "no_imgnorm", "no_txtnorm"
    )

    hinge = parser.add_argument_group("hinge (docs/method.md, section 5)")
    add_fields(hinge, ObjectiveOptions, "margin")
    hinge.add_argument(
        "--max_violation",
        action="store_true",
        help="vse: use the hardest negatives from the first epoch",
    )
    hinge.add_argument(
        "--vse_mean_warmup_epochs",
        type=COUNT_OR_NONE,
        default=1,
        help="vse: number of first epochs that use all negatives instead of the hardest",
    )
    add_fields(hinge, ObjectiveOptions, "mask_repeat")

    optim = parser.add_argument_group("optimisation (docs/method.md, section 6)")
    optim.add_argument(
        "--num_epochs", type=Number(int, 1, MOST_EPOCHS), default=30, help="number of epochs"
    )
    optim.add_argument(
        "--batch_size",
        type=number_of_pairs,
        default=128,
        help="number of image-caption pairs in a batch, B",
    )
    optim.add_argument(
        "--batch_sampling",
        choices=SAMPLING,
        default="random",
        help="how batches are drawn: random, or neighbour: images of a few k-means "
        "clusters, as in the paper",
    )
    optim.add_argument(
        "--batch_clusters",
        type=COUNT,
        default=8,
        help="neighbour sampling: number of clusters P in a batch, with B / P images of each",
    )
    optim.add_argument(
        "--learning_rate",
        type=POSITIVE,
        default=5e-4,
        help="learning rate of AdamW; BERT uses a tenth of it",
    )
    optim.add_argument(
        "--lr_schedules",
        type=COUNT_OR_NONE,
        nargs="*",
        default=[15, 25],
        help="epochs after which the learning rate is multiplied by --decay_rate",
    )
    optim.add_argument(
        "--decay_rate", type=FRACTION, default=0.1, help="factor of each learning-rate decay"
    )
    optim.add_argument(
        "--grad_clip", type=POSITIVE, default=2.0, help="maximum norm of the gradient"
    )
    add_options(parser)
    return parser


def number_of_pairs(text):
    """An argparse type: a batch size, at least 2,
    because one pair has no negative and no batch statistics."""
    return Number(int, 2, LARGEST_BATCH)(text)


def results_form(text):
    """An argparse type: 0, 1, or "published", the form in which similarities are saved."""
    return text if text == "published" else SWITCH(text)


def image_name(text):
    """An argparse type: the number of an image, from 0, or "id:ID"; a string,
    for image 0 is no missing value."""
    return text if text.startswith("id:") else str(COUNT_OR_NONE(text))


def add_data_options(group):
    """Where the data are: shared by train.py and eval.py."""
    group.add_argument("--data_path", default="data/", help="folder that contains DATASET_precomp")
    group.add_argument(
        "--dataset",
        default="f30k",
        help="f30k, coco, demo (built in), or the DATASET of any DATASET_precomp folder",
    )


def add_device_options(group):
    """Where to compute: shared by train.py and eval.py."""
    group.add_argument(
        "--gpu-id",
        "--gpu_id",
        dest="gpu_id",
        type=COUNT_OR_NONE,
        default=0,
        help="index of the CUDA GPU",
    )
    group.add_argument(
        "--device", default="auto", help="auto (a GPU if there is one), cpu, cuda or cuda:N"
    )


def parse_training(parser, argv=None):
    """Parse and check train.py's command line; `--dataset demo` and `--method` bring their own
    defaults.

    Raises InputError.
    """
    first = Parser(prog=parser.prog, add_help=False)
    first.add_argument("--dataset")
    first.add_argument("--method")
    first.add_argument("--data_path", default=parser.get_default("data_path"))
    chosen = first.parse_known_args(argv)[0]
    if chosen.dataset == "demo":
        parser.set_defaults(**DEMO, bert_path=demo_bert(chosen.data_path))
    parser.set_defaults(**METHODS.get(chosen.method, {}))
    options = parser.parse_args(argv)
    options.model_name = getattr(options, "model_name", options.logger_name)
    if options.multi_gpu and world_size() == 1:
        raise InputError(
            f"--multi_gpu 1: expected the launcher of PyTorch, this command: {_torchrun(argv)}"
        )
    check(options)
    options.seed = getattr(options, "seed", 0)
    return options


def refuse_early(program):
    """End the process at --help or a refused option, before the program's slow imports.

    program: "train" or "eval". The processes of torchrun skip this: they refuse options together,
    later.
    """
    if world_size() > 1:
        return
    on_interrupt = signal.getsignal(signal.SIGINT)
    is_training = program == "train"
    command_line(lambda: parse_training(training_parser()) if is_training else parse_evaluation())
    signal.signal(signal.SIGINT, on_interrupt)


def world_size():
    """The number of processes that torchrun started, 1 without torchrun."""
    found = os.environ.get("WORLD_SIZE", "1")
    return int(found) if found.isdecimal() and int(found) else 1


def _torchrun(argv):
    """The command that trains with these arguments on all GPUs of this machine."""
    given = shlex.join(sys.argv[1:] if argv is None else argv)
    given = given.replace("--multi_gpu=1", "").replace("--multi_gpu 1", "")
    name = program_name("train.py")
    program = name if name == "train.py" else f"--no-python {name}"  # which may not be a script
    import torch  # only here: it takes seconds to import

    processes = max(torch.cuda.device_count(), 1)
    return f"torchrun --nproc_per_node {processes} {program} {' '.join(given.split())}"


def runs(options):
    """The options of each run that `options` ask for: as they are or, with --seeds,
    for one run a seed."""
    found = []
    for seed in getattr(options, "seeds", [options.seed]):
        run = dict(vars(options), seed=seed)
        if run.pop("seeds", None):
            for folder in ("logger_name", "model_name"):
                run[folder] = seed_folder(run[folder], seed)
        found.append(argparse.Namespace(**run))
    return found


def check(options):
    """What no single option can tell. Raises InputError."""
    if options.embed_size % options.nhead:
        raise InputError(
            f"--nhead {options.nhead} does not divide --embed_size {options.embed_size}; expected "
            "a divisor, such as --nhead "
            f"{max(n for n in range(1, 17) if options.embed_size % n == 0)}"
        )
    if options.embed_size % 2:
        raise InputError(
            f"--embed_size {options.embed_size}: expected an even number, the MLP is half as wide"
        )
    if options.batch_sampling == "neighbour" and options.batch_size % options.batch_clusters:
        most = min(options.batch_clusters, options.batch_size)
        raise InputError(
            f"--batch_clusters {options.batch_clusters} does not divide --batch_size "
            f"{options.batch_size}; expected a divisor, such as --batch_clusters "
            f"{max(n for n in range(1, most + 1) if options.batch_size % n == 0)}"
        )
    if "seeds" in options:
        seeds = f"--seeds {' '.join(map(str, options.seeds))}"
        if "seed" in options:
            raise InputError(
                f"{seeds} and --seed {options.seed}: expected one "
                "of the two; add the seed to --seeds"
            )
        if len(set(options.seeds)) < len(options.seeds):
            raise InputError(f"{seeds}: a seed twice, expected each once")
    if options.glove and options.text_encoder != "bigru":
        raise InputError(
            f"--glove {options.glove}: BERT reads no GloVe vectors; expected it with "
            "--text_encoder bigru"
        )
    processes = world_size()
    if options.batch_size % processes:
        raise InputError(
            f"--batch_size {options.batch_size} is not a multiple of the {processes} processes; "
            "expected the pairs of the whole batch, such as --batch_size "
            f"{-(-options.batch_size // processes) * processes}"
        )
    if processes > 1 and ":" in options.device:
        raise InputError(
            f"--device {options.device}: expected auto, cuda or cpu, torchrun deals out the GPUs"
        )
    for option in ("dataset", "val_split", "test_split"):
        if getattr(options, option) is not None:  # test_split: the data say
            check_name(f"--{option}", getattr(options, option))
    for option in ("logger_name", "model_name"):
        _check_folder(option, Path(getattr(options, option)).absolute())


def _check_folder(option, folder):
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        found = "a folder without write permission" if there.is_dir() else "a file"
        raise InputError(
            f"--{option} {folder}: found {there}, {found}, "
            "expected a folder to write in; name another"
        )


def evaluation_parser():
    """The parser of eval.py."""
    text = "Report the retrieval table of one trained model, or of an ensemble."
    parser = Parser(prog=program_name("eval.py"), description=text, epilog=EVALUATION_EXAMPLES)
    data = parser.add_argument_group("model and data")
    data.add_argument(
        "run", nargs="*", help="run folders or checkpoint files, same as --model_path"
    )
    data.add_argument(
        "--model_path",
        action="append",
        help="run folder, folder of runs with several seeds, or checkpoint file; "
        "give it several times for an ensemble (default: runs/DATASET_test)",
    )
    add_data_options(data)
    # those of training, as the checkpoint has them
    parser.set_defaults(data_path=None, dataset=None)
    data.add_argument(
        "--bert_path",
        help="BERT folder or hub name, if it is not the one that the model was trained with",
    )
    data.add_argument("--split", help="split to evaluate (default: --test_split of the training)")

    table = parser.add_argument_group("table (docs/method.md, section 7)")
    table.add_argument("--save_results", type=results_form, default=0, help=RESULTS_FORMS)
    table.add_argument(
        "--bootstrap",
        type=Number(int, 0, MOST_SAMPLES),
        default=0,
        help="number of bootstrap samples of the images for 95%% intervals; with "
        "two models, also of their difference",
    )
    table.add_argument(
        "--extended",
        action="store_true",
        help="COCO testall: also report ECCV Caption and CxC (needs the package eccv_caption)",
    )

    search = parser.add_argument_group("search, instead of a table")
    search.add_argument("--query", metavar="TEXT", help="print the best images for a text")
    search.add_argument(
        "--query_image",
        type=image_name,
        metavar="N",
        help="print the best captions for image number N (from 0), or for id:ID, "
        "an id in SPLIT_ids.txt",
    )

    files = parser.add_argument_group("report and export")
    files.add_argument(
        "--report",
        action="store_true",
        help="write a report page of one model, report.html or report_SPLIT.html, "
        "into the run folder",
    )
    files.add_argument(
        "--gallery",
        type=Number(int, 0, MOST_SHOWN),
        default=6,
        help="report: number of queries of each kind to show",
    )
    files.add_argument(
        "--images",
        metavar="FOLDER",
        help="report: folder of pictures named by their ids in SPLIT_ids.txt",
    )
    files.add_argument(
        "--topk",
        type=Number(int, 1, MOST_SHOWN),
        default=5,
        help="number of results per query in a search or a report",
    )
    files.add_argument(
        "--export",
        metavar="DIR",
        help="write the embeddings as .npy files into DIR, which must not exist",
    )
    add_device_options(parser.add_argument_group("device"))
    return parser


def parse_evaluation(argv=None):
    """Parse and check eval.py's command line. Raises InputError."""
    options = evaluation_parser().parse_intermixed_args(argv)
    options.model_path = options.run + (options.model_path or []) or [
        f"runs/{options.dataset or 'f30k'}_test"
    ]
    for option in ("dataset", "split"):
        if getattr(options, option) is not None:
            check_name(f"--{option}", getattr(options, option))
    _check_search(options)
    for option in ("query", "query_image", "export", "report"):
        if len(options.model_path) > 1 and is_given(options, option):
            raise InputError(
                f"--{option}: found {len(options.model_path)} models, expected one --model_path"
            )
    if options.images is not None and not options.report:
        raise InputError(
            f"--images {options.images}: found no --report, which shows the pictures; add --report"
        )
    if options.images is not None and not Path(options.images).is_dir():
        found = "a file" if Path(options.images).exists() else "no such folder"
        raise InputError(
            f"--images {options.images}: found {found}, expected a folder of pictures named by "
            "id, such as 188.jpg; name another, or leave out --images"
        )
    if options.export is not None:
        _check_folder("export", Path(options.export).absolute())
        export.check(options.export)
    return options


def _check_search(options):
    if options.query is not None and not options.query.strip():
        raise InputError(
            "--query: found no word, expected a text such as --query 'two dogs in the snow'"
        )
    if options.query is not None and options.query != printable(options.query):
        raise InputError(
            f"--query {one_line(options.query):.60}: found control characters or bytes that are "
            "no UTF-8, expected plain text; type it again"
        )
    nowhere = [name for name in options.run if not Path(name).exists()]
    if options.query is not None and nowhere:
        raise InputError(
            f"{nowhere[0]}: found no such run folder or file, expected one; if it is a word of "
            "the query, put the text of --query in quotes: --query "
            f"{shlex.quote(' '.join([options.query, *nowhere]))}"
        )
    for searching in ("query", "query_image"):
        for option in ("report", "export", "bootstrap", "extended", "save_results"):
            if is_given(options, searching) and is_given(options, option):
                raise InputError(
                    f"--{searching} with --{option}: a search prints its results instead of a "
                    f"table, expected one of the two; leave out --{searching} or --{option}"
                )
