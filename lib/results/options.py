"""Options of eval.py, in the order of its --help, and the checks that need several of them.

Parsing imports this module, so it must not import torch.
"""

import argparse
import importlib.util
import shlex
from pathlib import Path

from ..data.options import add_data_options
from ..system.console import one_line, printable
from ..system.errors import InputError
from ..system.files import why_unreadable
from ..system.options import (
    COUNT_OR_NONE,
    RESULTS_FORMS,
    Number,
    add_device_options,
    check_writable,
    is_given,
    results_form,
)
from ..system.run_folder import check_name

# limits of --bootstrap, and of --topk and --gallery
MOST_SAMPLES, MOST_SHOWN = 10**6, 10**4
PORT = 8000  # of the search page


def add_evaluation_options(parser: argparse.ArgumentParser) -> None:
    """Add all options of eval.py, in the order in which a user needs them."""
    _add_runs(parser)
    _add_data(parser)
    _add_table(parser)
    _add_search(parser)
    _add_export(parser)
    _add_report(parser)
    add_device_options(parser.add_argument_group("device"))


def image_name(text: str) -> str:
    """An argparse type: the number of an image, from 0, "id:ID", or the path of a picture. The
    result is a string, so that image 0 counts as given."""
    if text.startswith("id:"):
        return text
    try:
        return str(COUNT_OR_NONE(text))
    except argparse.ArgumentTypeError as error:
        if not text or why_unreadable(text):
            raise argparse.ArgumentTypeError(
                f"no such picture (found {text!r:.200}, expected a picture file, the number "
                "of an image from 0, or id:ID)"
            ) from error
    return text


def is_picture(name: str) -> bool:
    """Whether a value of `image_name` is the path of a picture."""
    return not name.startswith("id:") and not name.isdecimal()


def _add_runs(parser):
    group = parser.add_argument_group("what to evaluate (docs/evaluation.md)")
    group.add_argument(
        "run", nargs="*", help="run folders or checkpoint files, same as --model_path"
    )
    group.add_argument(
        "--model_path",
        action="append",
        help="run folder, folder of runs with several seeds, or checkpoint file; "
        "give it several times for an ensemble (default: runs/DATASET_test)",
    )
    group.add_argument("--split", help="split to evaluate (default: --test_split of the training)")


def _add_data(parser):
    group = parser.add_argument_group("data, if they are not those of the training (docs/data.md)")
    add_data_options(group)
    parser.set_defaults(data_path=None, dataset=None)  # those of training, in the checkpoint
    group.add_argument(
        "--bert_path",
        help="BERT folder or hub name, if it is not the one that the model was trained with",
    )


def _add_table(parser):
    group = parser.add_argument_group("table (docs/method.md, section 7; docs/evaluation.md)")
    group.add_argument("--save_results", type=results_form, default=0, help=RESULTS_FORMS)
    group.add_argument(
        "--bootstrap",
        type=Number(int, 0, MOST_SAMPLES),
        default=0,
        help="number of bootstrap samples of the images for 95%% intervals; with "
        "two models, also of their difference",
    )
    group.add_argument(
        "--extended",
        action="store_true",
        help="COCO testall: also report ECCV Caption and CxC (needs the package eccv_caption)",
    )


def _add_search(parser):
    group = parser.add_argument_group("search, instead of a table (docs/evaluation.md)")
    group.add_argument("--query", metavar="TEXT", help="print the best images for a text")
    group.add_argument(
        "--query_image",
        type=image_name,
        metavar="N",
        help="print the best captions for image number N (from 0), for id:ID, an id in "
        "SPLIT_ids.txt, or for the picture in a file",
    )
    group.add_argument(
        "--topk",
        type=Number(int, 1, MOST_SHOWN),
        default=5,
        help="number of results per query in a search or a report",
    )
    group.add_argument(
        "--serve",
        nargs="?",
        const=PORT,
        type=Number(int, 1, 65535),
        metavar="PORT",
        help="serve a search page of one model on this computer until Ctrl-C; name the run before "
        f"it (PORT, if not given: {PORT}; needs the package flask)",
    )


def _add_export(parser):
    group = parser.add_argument_group("export (docs/evaluation.md)")
    group.add_argument(
        "--export",
        metavar="DIR",
        help="write the embeddings as .npy files into DIR, which must not exist",
    )


def _add_report(parser):
    group = parser.add_argument_group("report (docs/evaluation.md)")
    group.add_argument(
        "--report",
        action="store_true",
        help="write a report page of one model, report.html or report_SPLIT.html, "
        "into the run folder",
    )
    group.add_argument(
        "--gallery",
        type=Number(int, 0, MOST_SHOWN),
        default=6,
        help="report: number of queries of each kind to show",
    )
    group.add_argument(
        "--images",
        metavar="FOLDER",
        help="report and search page: folder of pictures named by their ids in SPLIT_ids.txt",
    )


def check(options: argparse.Namespace) -> None:
    """Raise InputError for options that cannot be combined, or values that cannot be used."""
    for option in ("dataset", "split"):
        if getattr(options, option) is not None:
            check_name(f"--{option}", getattr(options, option))
    _check_query(options)
    _check_search(options)
    for option in ("query", "query_image", "serve", "export", "report"):
        if len(options.model_path) > 1 and is_given(options, option):
            raise InputError(
                f"--{option}: this needs a single model (found {len(options.model_path)} models, "
                "expected one). Give one run folder or one --model_path"
            )
    _check_images(options)
    if options.serve is not None:
        _check_flask()
    if options.export is not None:
        check_writable("export", Path(options.export).absolute())
        _check_empty(Path(options.export))


def _check_empty(folder):
    """Raise InputError if the folder of --export is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        found = "a folder that is not empty" if folder.is_dir() else "a file"
        raise InputError(
            f"--export {folder}: cannot write there (found {found}, expected an empty or a new "
            "folder). Name another folder"
        )


def _check_query(options):
    if options.query is not None and not options.query.strip():
        raise InputError(
            "--query: the text is empty (found no word, expected a text). Give one, such as "
            "--query 'two dogs in the snow'"
        )
    if options.query is not None and options.query != printable(options.query):
        raise InputError(
            f"--query {one_line(options.query):.60}: not printable (found control characters or "
            "bytes that are not UTF-8, expected plain text). Type it again"
        )
    nowhere = [name for name in options.run if not Path(name).exists()]
    if options.query is not None and nowhere:
        raise InputError(
            f"{nowhere[0]}: not a model (found no such run folder or file, expected one). If it "
            "is a word of the query, put the text of --query in quotes: --query "
            f"{shlex.quote(' '.join([options.query, *nowhere]))}"
        )


def _check_search(options):
    for searching in ("query", "query_image"):
        if is_given(options, searching) and options.serve is not None:
            raise InputError(
                f"--serve with --{searching}: queries are typed on the search page (found both, "
                f"expected one of the two). Leave out --serve or --{searching}"
            )
    for searching in ("query", "query_image", "serve"):
        for option in ("report", "export", "bootstrap", "extended", "save_results"):
            if is_given(options, searching) and is_given(options, option):
                raise InputError(
                    f"--{searching} with --{option}: a search makes no table (found both, "
                    f"expected one of the two). Leave out --{searching} or --{option}"
                )


def _check_images(options):
    if options.images is not None and not options.report and options.serve is None:
        raise InputError(
            f"--images {options.images}: only the report and the search page show pictures (found "
            "neither --report nor --serve, expected one of them). Add --report or --serve"
        )
    if options.images is not None and not Path(options.images).is_dir():
        found = "a file" if Path(options.images).exists() else "no such folder"
        raise InputError(
            f"--images {options.images}: not a folder (found {found}, expected a folder of "
            "pictures named by id, such as 188.jpg). Name another, or leave out --images"
        )


def _check_flask():
    """Raise InputError if flask is not installed. Flask is not imported."""
    if importlib.util.find_spec("flask") is None:
        raise InputError(
            "--serve: the search page cannot be served (found no flask, expected it to be "
            "installed). Run: pip install flask"
        )
