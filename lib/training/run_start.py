"""Beginning a run, in an empty folder or in place of another run,
and going on with one (runs/README.md).

All checks come first and change nothing. Then one atomic write of the manifest decides: it names
the files of the run before as discarded and the new run as begun. What follows (deleting, the first
files of the new run) is repeated by any later command if it was cut short. With two folders, the
manifest in that of the checkpoints decides for both.

The record of a run in the manifest: its random `id`; `log`, which logs are its own, as their
folder's manifest says; `saved`, whether last.pth was ever written; `resumed_from`, the file of
--resume PATH; `replaces`, logs of other runs in the folder of logs that give way to it.
"""

import contextlib
import dataclasses
import os
import secrets
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..model import checkpoint
from ..model.options import ModelOptions
from ..objective.options import ObjectiveOptions
from ..system.distributed import print_line
from ..system.errors import InputError
from ..system.files import lock, remove_temporaries, report_write_errors, why_unreadable
from ..system.run_folder import BEST, LAST, MANIFEST, RunFolder, is_plain_file
from . import legacy_files
from .logs import EVAL, PARAMETERS, TRAIN

LOCK = ".lock"
OTHER_LOG_REMEDY = "Give another --logger_name, or overwrite its files with --overwrite 1"
MAY_CHANGE = {  # options that may differ when a run is resumed
    "data_path", "bert_path", "workers", "logger_name", "model_name", "overwrite", "resume",
    "save_step", "log_step", "save_results", "gpu_id", "device", "num_epochs", "multi_gpu",
    "allow_changed_data",
}  # fmt: skip
# options that older runs do not have, with what they did
ADDED_OPTIONS: dict[str, Any] = dict(
    init_from=None, word_augment=1, weight_decay=1e-4, bert_lr_factor=0.1, schedule="step",
    lr_warmup=0, average_from=None, average_decay=0.99, views=1,
)  # fmt: skip


def find_best(resumed_file: Path) -> Path | None:
    """The file of the best model so far of the run of `resumed_file`, or None. Raises
    InputError."""
    path = Path(resumed_file).with_name(BEST)
    why = why_unreadable(path)
    if why not in (None, "no such file"):
        raise InputError(
            f"{path}: {why} (expected the best model of the run, or no file). Move it away"
        )
    return None if why else path


def find_best_rsum(
    resumed_file: Path, content: Mapping[str, Any], num_epochs: int, model: nn.Module
) -> float:
    """The best score so far of a resumed run, -1 if its model is missing. Raises InputError.

    content: that of `resumed_file`; model: the model of the run, whose sizes the best one must
    have.
    """
    best = find_best(resumed_file)
    if best:
        try:  # otherwise a damaged file would be noticed only at the end of training
            found = checkpoint.load(best)
            checkpoint.check_fits(model, found, best)
        except InputError as error:
            remedy = "Put a complete copy in its place" + ", or move it away" * (
                content["epoch"] < num_epochs
            )
            raise InputError(
                f"{best}: not the best model of this run (found {error}). {remedy}"
            ) from error
        _check_best(found, best, resumed_file, content)
        return content["best_rsum"]
    missing = Path(resumed_file).with_name(BEST)
    if content["epoch"] >= num_epochs:
        raise InputError(
            f"{missing}: no such file (expected the best model of this finished run). Put it "
            "back, or continue training with a larger --num_epochs"
        )
    if content["best_rsum"] >= 0:
        print_line(f"{missing}: no such file; the next validated model becomes the best")
    return -1.0


def _check_best(best, best_file, resumed_file, content):
    """Refuse a best model, a `Checkpoint`, that is not of the run that `resumed_file` is of:
    its table would end it."""
    last_rsum = content["best_rsum"]
    # the run was killed before it saved again
    is_later = not best.is_published and best.epoch > content["epoch"]
    if last_rsum >= 0 and not is_later and best.best_rsum != last_rsum:
        raise InputError(
            f"{best_file}: the best model of another run or of another epoch (found rsum "
            f"{best.best_rsum:.1f}, expected {last_rsum:.1f} as in {resumed_file}). Put the right "
            "one back, or move this one away"
        )


class RunFolders:
    """The folder of a run's checkpoints and that of its logs and tables, which may be the same, and
    the locks on them.

    The locks end with the `with` block. With several processes, only the main one locks and starts.
    """

    def __init__(self, models: Path | str, logs: Path | str) -> None:
        self.models = RunFolder(models)
        self.is_one = os.path.realpath(models) == os.path.realpath(logs)
        self.logs = self.models if self.is_one else RunFolder(logs)
        self.all = [self.models] if self.is_one else [self.models, self.logs]
        self.best_file, self.last_file = self.models.path / BEST, self.models.path / LAST
        self._locks = contextlib.ExitStack()

    def __enter__(self) -> "RunFolders":
        return self

    def __exit__(self, *_: object) -> None:
        self._locks.close()

    def lock_existing(self) -> None:
        """Lock the folders that contain a run. Raises InputError if another process uses one."""
        for folder in self.all:
            if os.path.lexists(folder.path / MANIFEST) or (folder.path / LAST).exists():
                self._locks.enter_context(lock(folder.path / LOCK))

    def find_resumed(self, resume: str, overwrite: int) -> Path | None:
        """The file from which the run is resumed, or None for a new run (--resume, --overwrite).
        Changes nothing.

        Raises InputError if the run would overwrite the content of a folder without --overwrite.
        """
        run = self.models.read()["run"]
        # its best model is then a copy of another run's, or none
        is_begun = run is not None and not run["saved"]
        held = next(
            (name for name in ((LAST,) if is_begun else (LAST, BEST)) if self.models.holds(name)),
            None,
        )
        found: Path | None
        if resume == "auto" and held == LAST:
            found = self.last_file
        elif resume == "auto":
            found = (
                checkpoint.find(run["resumed_from"], LAST, "--resume")
                if is_begun and run["resumed_from"]
                else None
            )
        else:
            found = None if resume == "none" else checkpoint.find(resume, LAST, "--resume")
        is_own = self.is_own(found)
        if not overwrite and not is_own:
            self._check_models(held, run)
        if not overwrite:
            self._check_logs(is_own, run)
        return found

    def is_own(self, path: Path | None) -> bool:
        """Whether `path` is the last.pth of the run in these folders."""
        return path is not None and self.models.holds(LAST) and path.samefile(self.last_file)

    def _check_models(self, held, run):
        another = "give another " + ("--logger_name" if self.is_one else "--model_name")
        if held:
            remedies = ["resume it with --resume auto"] * (held == LAST)
            remedies += ["overwrite it with --overwrite 1"] * (held in self._own(self.models))
            remedy = ", ".join([*remedies, "or " * bool(remedies) + another])
            raise InputError(
                f"{self.models.path / held}: the folder already contains a run (found {held}, "
                f"expected an empty folder). {remedy[0].upper() + remedy[1:]}"
            )
        if run and run["saved"]:
            raise InputError(
                f"{self.models.path}: the checkpoints are missing (found neither {LAST} nor "
                f"{BEST}, expected those that the run has saved according to {MANIFEST}). "
                f"Put them back, overwrite the run with --overwrite 1, or {another}"
            )
        if not run and not self._is_empty(self.models):
            raise InputError(
                f"{self.models.path}: the folder contains other files (found no run, expected an "
                f"empty folder or a run folder). {another[0].upper() + another[1:]}, or start a "
                "run beside these files with --overwrite 1, which overwrites only files that this "
                "program wrote"
            )

    def _check_logs(self, is_own, run):
        """Refuse logs that are not those of the run, or files that are no logs.
        Raises InputError."""
        found = self.logs.read()
        if self.is_one:
            if is_own and run and found["log"] not in (None, run["log"]):
                raise InputError(
                    f"{self.logs.path}: these logs are outdated, because the run was continued "
                    f"with another --logger_name (expected the logs that belong to {LAST}). Name "
                    "the folder of those, or overwrite these logs with --overwrite 1"
                )
            return
        if found["log"] and run and found["log"] in (run["log"], *run["replaces"]):
            return
        has_checkpoints = found["run"] or any(self.logs.holds(name) for name in (LAST, BEST))
        if is_own and not run and not has_checkpoints and self._holds_logs_of_last():
            return  # from before there were manifests
        if found["log"] or has_checkpoints:
            raise InputError(
                f"{self.logs.path}: the folder contains another run (expected an empty folder). "
                f"{OTHER_LOG_REMEDY}"
            )
        if not self._is_empty(self.logs):
            raise InputError(
                f"{self.logs.path}: the folder contains other files (found no run, expected an "
                f"empty folder). {OTHER_LOG_REMEDY} (files that this program did not write stay)"
            )

    def _is_empty(self, folder):
        """Whether a folder is empty, except for the run's other folder, which may be inside."""
        return folder.is_empty(
            but=next((other.path for other in self.all if other is not folder), None)
        )

    def _holds_logs_of_last(self):
        last = legacy_files.read_last_checkpoint(self.models.path)
        return last is not None and legacy_files.holds_logs(self.logs.path, last)

    def _own(self, folder):
        """Names of our files in a folder: as its manifest says or, without one,
        as their contents prove."""
        content = folder.read()
        own = set(content["files"])
        if not content["run"] and not content["log"]:
            last = legacy_files.read_last_checkpoint(
                folder.path
            ) or legacy_files.read_last_checkpoint(self.models.path)
            own |= legacy_files.own_files(folder.path, last)
        return {name for name in own if is_plain_file(folder.path / name)}

    def start(
        self, resumed_file: Path | None, tables: Collection[str], resume: str, overwrite: int
    ) -> bool:
        """Resume the run in these folders or begin one, after all other checks. Raises InputError.

        resumed_file: result of `find_resumed`, which is checked again under the locks, with
        `resume` and `overwrite`; tables: names of the files that the run will write beside its
        logs. Returns whether the existing logs are those of the run.
        """
        own = self._prepare(tables, resumed_file, resume, overwrite)
        if self.is_own(resumed_file):
            return self._resume(own)
        self._begin(resumed_file, own)
        best = resumed_file and find_best(resumed_file)
        if best:  # of the run that this one continues
            with self.models.atomic_write(BEST) as file:
                file.write(best.read_bytes())
        return False

    def _begin(self, resumed_file, own):
        """Begin a run, and discard the files of an earlier one. resumed_file: in another folder, or
        None; own: names of our files by folder."""
        for folder in self.all:
            if resumed_file and any(
                (folder.path / name).samefile(resumed_file) for name in own[folder]
            ):
                raise InputError(
                    f"{resumed_file}: the run would overwrite it (found in the folder of the run, "
                    "expected in another one). Give another --logger_name and --model_name"
                )
        there = self.logs.read()["log"]
        run = dict(
            id=secrets.token_hex(8),
            saved=False,
            resumed_from=resumed_file and str(Path(resumed_file).resolve()),
            replaces=[there] if there and not self.is_one else [],
        )
        run["log"] = run["id"]
        for folder in self.all:
            with folder.update() as content:
                content["discarded"] = content["files"] = sorted({*content["files"], *own[folder]})
                content["run"] = run if folder is self.models else None
                content["log"] = run["log"] if folder is self.logs else None
        self._finish()

    def _resume(self, own):
        """Go on with the run that has its last.pth here.
        Returns whether the logs that are there are its own.

        own: names of our files by folder. Those from before there were manifests are entered into
        one.
        """
        run, there = self.models.read()["run"], self.logs.read()["log"]
        is_before_manifests = run is None
        if is_before_manifests:
            identity = secrets.token_hex(8)
            run = dict(id=identity, log=there or identity, resumed_from=None, replaces=[])
        is_own_log = is_before_manifests or there == run["log"]
        if not is_own_log:
            run |= dict(log=secrets.token_hex(8), replaces=[there] if there else [])
        run["saved"] = True
        # the record of the run comes first, but for a run without one: until then its logs are
        # found without it
        for folder in reversed(self.all) if is_before_manifests else self.all:
            with folder.update() as content:
                content["files"] = sorted({*content["files"], *own[folder]})
                if folder is self.logs:
                    gives_way = bool(there or not self.is_one) and not is_own_log
                    kept = {LAST, BEST} if self.is_one else set()
                    content["discarded"] = [
                        name for name in content["files"] if name not in kept
                    ] * gives_way
                    content["log"] = run["log"]
                content["run"] = run if folder is self.models else None
        self._finish()
        return is_own_log

    def _prepare(self, tables, resumed_file, resume, overwrite):
        """Lock both folders, which are made if they are missing,
        and check all that is to be written there.

        Returns the names of our files by folder. Raises InputError; nothing was deleted then.
        """
        for folder in self.all:
            with report_write_errors(folder.path):
                folder.path.mkdir(parents=True, exist_ok=True)
            self._locks.enter_context(lock(folder.path / LOCK))
        if self.find_resumed(resume, overwrite) != resumed_file:
            raise InputError(
                f"{self.models.path}: another process has begun a run here meanwhile (expected "
                "none). Resume it with --resume auto, or give another --logger_name"
            )
        own = {folder: self._own(folder) for folder in self.all}
        self.models.check_writable((LAST, BEST), own[self.models])
        self.logs.check_writable((TRAIN, EVAL, PARAMETERS, *tables), own[self.logs])
        return own

    def _finish(self):
        """Delete what is discarded, and what killed processes have left half written."""
        for folder in self.all:
            remove_temporaries(folder.path, {MANIFEST, *folder.read()["files"]})
            with folder.update():
                pass  # that alone deletes

    def saved(self) -> None:
        """Record that last.pth was written."""
        run = self.models.read()["run"]
        if run and not run["saved"]:
            with self.models.update() as content:
                content["run"]["saved"] = True


def check_resumed(path: Path, options: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Check that a run is resumed with its options, except for MAY_CHANGE. Raises InputError that
    names one."""
    defaults = dataclasses.asdict(ModelOptions()) | dataclasses.asdict(ObjectiveOptions())
    defaults.pop("longest_distance")  # None: chosen by the data
    saved = ADDED_OPTIONS | defaults | dict(saved)
    for name in sorted(options.keys() & saved.keys() - MAY_CHANGE):
        if options[name] != saved[name]:
            raise InputError(
                f"{path}: the run was started with other options (found --{name} {options[name]}, "
                f"expected --{name} {saved[name]}). Give the options in Parameters.txt, or start a "
                "new run in another --logger_name or with --overwrite 1"
            )
