"""Which files of a folder without a manifest earlier versions of this program wrote there,
as their contents prove."""

from pathlib import Path
from typing import Any

from ..evaluation import result_folder
from ..model import checkpoint
from ..system.errors import InputError
from ..system.run_folder import BEST, LAST, LOG_NAMES, OWN_NAMES, is_plain_file
from .logs import EVAL, PARAMETERS
from .validations import VALIDATION

RESULTS = (".md", ".json", ".npy", ".npz", ".html")


def read_last_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The content of the last.pth of a folder, or None if there is none of ours."""
    try:
        return checkpoint.load_run(Path(folder) / LAST)
    except InputError:
        return None


def own_files(folder: Path, last: dict[str, Any] | None) -> set[str]:
    """Names of the files that are proven to be ours.

    last: content of the last.pth of their run, which may be in another folder, or None.
    """
    folder = Path(folder)
    found = {path.name for path in folder.glob("*") if is_plain_file(path) and _is_result(path)}
    if last:
        found |= {LAST} | _logs(folder, last)
        # without those that versions of then did not have
        names = _option_names(folder / PARAMETERS)
        is_ours = names == sorted(last["options"].keys() - (checkpoint.ADDED_OPTIONS - set(names)))
        found |= {PARAMETERS} if is_ours else set()
        found |= {EVAL} if VALIDATION.match(_text(folder / EVAL)) else set()
    if _is_our_checkpoint(folder / BEST):
        found.add(BEST)
    return {name for name in found if OWN_NAMES.fullmatch(name) and is_plain_file(folder / name)}


def holds_logs(folder: Path, last: dict[str, Any]) -> bool:
    """Whether a folder contains all the logs of the run with this content of last.pth."""
    return _logs(Path(folder), last) == last["position"]["log_sizes"].keys()


def _logs(folder, last):
    """Logs that are at least as long as the run left them."""
    return {
        name
        for name, size in last["position"]["log_sizes"].items()
        if LOG_NAMES.fullmatch(name)
        and is_plain_file(folder / name)
        and (folder / name).stat().st_size >= size
    }


def _is_result(path):
    """Whether an evaluation of ours wrote a file: a table, metrics.json, similarities,
    kept embeddings or a page."""
    return (
        OWN_NAMES.fullmatch(path.name) is not None
        and path.suffix in RESULTS
        and result_folder.is_ours(path)
    )


def _option_names(path):
    return [line.split(": ")[0] for line in _text(path).splitlines()]


def _text(path):
    return path.read_text(encoding="utf-8", errors="replace") if is_plain_file(path) else ""


def _is_our_checkpoint(path):
    try:
        return is_plain_file(path) and not checkpoint.load(path).is_published
    except InputError:
        return False
