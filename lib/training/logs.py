"""The logs of a run: text, options and TensorBoard curves (docs/method.md, section 9).

The text logs contain no times, so that two runs with one seed write the same bytes; times are on
the console and in TensorBoard. Only this file uses tensorboard_logger.
"""

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..system.console import one_line, printable
from ..system.distributed import print_line
from ..system.errors import InputError
from ..system.files import report_write_errors, why_unreadable
from ..system.images import can_encode, encode_png
from ..system.run_folder import LOG_NAMES, RunFolder, is_plain_file

try:
    from tensorboard_logger import Logger as TensorBoard
    from tensorboard_logger.tensorboard_logger import summary_pb2
except (ImportError, TypeError) as error:  # TypeError: protobuf 4 or later
    TensorBoard, WHY_NO_TENSORBOARD = None, str(error).splitlines()[0]

HISTOGRAM_BINS = 50  # from the lowest to the highest value
TRAIN, EVAL, PARAMETERS = "train.txt", "eval.txt", "Parameters.txt"


class RunLog:
    """The logs of one run in `folder`, which is created if it is missing. Only files in its
    manifest are changed.

    sizes: result of `sizes()` at the point from which the run is resumed: logs are cut to these
    sizes. Without sizes, the logs of an earlier run are removed. Raises InputError if the disk is
    full.
    """

    def __init__(self, folder: Path | str, sizes: dict[str, int] | None = None) -> None:
        self.folder, self._own = Path(folder), RunFolder(folder)
        check_sizes(self.folder, sizes or {})
        with report_write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self._files():
                if sizes and path.name in sizes:
                    _truncate(path, sizes[path.name])
                else:
                    self._own.remove(path.name)
            for name, size in sorted((sizes or {}).items()):
                if not os.path.lexists(self.folder / name):
                    print_line(
                        f"warning: {self.folder / name}: no such file, "
                        f"expected {size} bytes of the run's log"
                    )
            self.tensorboard = self._open_tensorboard() if TensorBoard else None
        if not TensorBoard:
            print_line(
                "TensorBoard curves are not written: tensorboard_logger does not import "
                f"({WHY_NO_TENSORBOARD})"
            )
        elif not can_encode():
            print_line(
                "TensorBoard images are not written: found no Pillow. Run: pip install pillow"
            )

    def _open_tensorboard(self):
        """A logger with a file of its own, claimed and created here: the logger would write into
        any of that name."""
        second = int(time.time())  # names its file: the first one that names none yet
        while True:
            path = self.folder / f"events.out.tfevents.{second}.{socket.gethostname()}"
            if not os.path.lexists(path) and not any(
                f".{second}." in file.name for file in self._files()
            ):
                break
            second += 1
        self._own.claim(path.name)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
        logger = TensorBoard.__new__(TensorBoard)
        with _closed_on_error(logger):
            logger.__init__(str(self.folder), flush_secs=2, dummy_time=second)
        logger._dummy_time = None  # from here on it looks at the clock
        return logger

    def _files(self):
        names = [name for name in self._own.read()["files"] if LOG_NAMES.fullmatch(name)]
        return [self.folder / name for name in names if is_plain_file(self.folder / name)]

    def sizes(self) -> dict[str, int]:
        """Bytes written so far by file name. Raises InputError if a file has disappeared."""
        with report_write_errors(self.folder):
            return {path.name: path.stat().st_size for path in self._files()}

    def parameters(self, options: Mapping[str, Any]) -> None:
        """Write the options, one per line."""
        lines = [
            f"{one_line(name)}: {one_line(value)}\n" for name, value in sorted(options.items())
        ]
        with self._own.atomic_write(PARAMETERS) as file:
            file.write("".join(lines).encode())

    def train(self, text: str, times: str = "") -> None:
        """Write a line of train.txt; `times` follows it on the console only."""
        self._line(TRAIN, one_line(text), times)

    def evaluation(self, text: str) -> None:
        """Write a line of eval.txt."""
        self._line(EVAL, text)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write points of TensorBoard curves at this optimisation step."""
        if self.tensorboard:
            with self._writing_curves():
                for name, value in values.items():
                    self.tensorboard.log_value(name, value, step=step)

    def images(self, images: Mapping[str, np.ndarray], step: int) -> None:
        """Write TensorBoard images, uint8 (rows, columns, 1 or 3)."""
        if not self.tensorboard or not can_encode():
            return
        fields = {}
        for name, pixels in images.items():
            height, width, channels = pixels.shape
            fields[name] = dict(
                height=height,
                width=width,
                colorspace=channels,
                encoded_image_string=encode_png(pixels),
            )
        self._summary("image", fields, step)

    def histograms(self, samples: Mapping[str, np.ndarray], step: int) -> None:
        """Write TensorBoard histograms of the finite numbers."""
        fields = {}
        for name, values in samples.items():
            values = values[np.isfinite(values)].astype(np.float64)
            if len(values):
                counts, edges = np.histogram(values, HISTOGRAM_BINS)
                fields[name] = dict(
                    min=values.min(), max=values.max(), num=len(values), sum=values.sum(),
                    sum_squares=np.square(values).sum(), bucket_limit=edges[1:], bucket=counts,
                )  # fmt: skip
        self._summary("histo", fields, step)

    @contextlib.contextmanager
    def _writing_curves(self):
        with report_write_errors(self.folder), _closed_on_error(self.tensorboard):
            yield

    def _summary(self, kind, fields, step):
        """Write what the logger has no method for that works:
        its own draw images with a function SciPy has dropped."""
        if self.tensorboard:
            with self._writing_curves():
                summary = summary_pb2.Summary(
                    value=[{"tag": name, kind: found} for name, found in fields.items()]
                )
                self.tensorboard._log_summary(kind, summary, None, step=step)

    def _line(self, file, text, times=""):
        print_line(text + times)
        self._own.claim(file)
        with report_write_errors(self.folder / file):
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
            with open(os.open(self.folder / file, flags, 0o666), "a", encoding="utf-8") as log:
                log.write(printable(text) + "\n")


def _truncate(path, size):
    """Cut a log to the size that it had; what is missing of it is told."""
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
    try:
        found = os.fstat(descriptor).st_size
        if found < size:
            print_line(
                f"warning: {path}: found {found} bytes, expected "
                f"{size}: lines of the log are missing"
            )
        else:
            os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _closed_on_error(logger):
    """Close a logger's file where writing to it fails:
    what is left in its buffer would fail again, at exit."""
    try:
        yield
    except OSError:
        # AttributeError: it has opened no file yet
        with contextlib.suppress(OSError, AttributeError):
            logger._writer.close()
        raise


def check_sizes(folder: Path, sizes: Mapping[str, int]) -> None:
    """Check that the text logs can be cut to these sizes, each at the end of a line. Raises
    InputError."""
    for name in {TRAIN, EVAL} & sizes.keys():
        path, size = folder / name, sizes[name]
        if not size or not os.path.lexists(path):
            continue
        if why := why_unreadable(path):
            raise InputError(
                f"{path}: {why}; expected the log of the run: move "
                "it away, or start with --resume none"
            )
        with open(path, "rb") as file:
            file.seek(size - 1)
            last = file.read(1)
        if last not in (b"", b"\n"):  # b"": the log is shorter, as after a power cut
            raise InputError(
                f"{path}: found text that goes on after {size} bytes, where the saved run ends "
                "it, expected the end of a line: one of log and last.pth was changed; start anew "
                "with --resume none, or another --logger_name"
            )


class NullLog(RunLog):
    """The log of a process that writes none: all but the first."""

    def __init__(self) -> None:
        self.tensorboard = None

    def sizes(self) -> dict[str, int]:
        """No files, no sizes."""
        return {}

    def parameters(self, options: Mapping[str, Any]) -> None:
        """Write nothing."""

    def _line(self, file, text, times=""):
        pass


class StepReport(NamedTuple):
    """What one optimisation step found: scalars on the model's device,
    to be read when there is time to wait."""

    loss: torch.Tensor
    terms: dict
    gradient_norm: torch.Tensor
    is_finite: torch.Tensor
    connected: torch.Tensor | None = None  # share of the graph, where it takes part


NOTHING_CONNECTED, ALL_CONNECTED = 0.0, 100.0  # percent of the graph
CONNECTION_WARNINGS = {
    NOTHING_CONNECTED: (
        "warning: 0 % of the graph is connected: no instance attends to any, so the graph has "
        "no effect; check `InstanceRelations.connect` in lib/objective/relation.py"
    ),
    ALL_CONNECTED: (
        "warning: 100 % of the graph is connected: nothing is masked, though soft "
        "connections may still weigh it; check --threshold, and `InstanceRelations.connect` in "
        "lib/objective/relation.py"
    ),
}


class StepLog:
    """Averages what the steps report and writes it every `log_step` steps:
    the only place that waits for the GPU.

    state: of another, as `state()` gave it; all_connected: the options ask for a graph in which
    everything is connected, so there is no warning that it is.
    """

    def __init__(
        self,
        log: RunLog,
        log_step: int,
        state: Mapping[str, Any] | None = None,
        all_connected: bool = False,
    ) -> None:
        self.log, self.log_step = log, log_step
        self.warned = [ALL_CONNECTED] * all_connected  # each is a warning once in a run
        self.num_skipped, self.reports, self.waited, self.seconds = 0, [], 0.0, 0.0
        if state:
            self.num_skipped, self.waited, self.seconds = (
                state["num_skipped"],
                state["waited"],
                state["seconds"],
            )
            self.reports = [StepReport(**report) for report in state["reports"]]
            self.warned = state.get("warned", self.warned)  # older runs do not have it

    def state(self) -> dict[str, Any]:
        """Reports that are not yet written, as tensors and plain values, for the argument `state`
        of another `StepLog`."""
        reports = [report._asdict() for report in self.reports]
        return dict(
            num_skipped=self.num_skipped, reports=reports, waited=self.waited,
            seconds=self.seconds, warned=self.warned,
        )  # fmt: skip

    def add(
        self,
        epoch: int,
        step_in_epoch: int,
        step: int,
        rate: float,
        report: StepReport,
        waited: float,
        seconds: float,
    ) -> None:
        """Add the report of one step. rate: learning rate; waited, seconds: for data, in total."""
        self.reports.append(report)
        self.waited += waited
        self.seconds += seconds
        if len(self.reports) >= self.log_step:
            self.write(epoch, step_in_epoch, step, rate)

    def write(self, epoch: int, step_in_epoch: int, step: int, rate: float) -> None:
        """Write the mean of the steps since the last line, if there were any."""
        if not self.reports:
            return
        count = len(self.reports)
        is_finite = _stack(report.is_finite for report in self.reports)
        means, faulty = (
            {"Loss": _mean(_stack(report.loss for report in self.reports), is_finite)},
            [],
        )
        for name in self.reports[-1].terms:
            has_term = torch.tensor([name in report.terms for report in self.reports])
            values = _stack(report.terms[name] for report in self.reports if name in report.terms)
            means["Loss_" + name] = _mean(values, is_finite[has_term])
            faulty += [name] * (not values.isfinite().all())
        norm = _mean(_stack(report.gradient_norm for report in self.reports), is_finite)
        skipped = count - int(is_finite.sum())
        self.num_skipped += skipped
        terms = ", ".join(
            f"{name.removeprefix('Loss_')} {value:.4f}" for name, value in list(means.items())[1:]
        )
        connected = self._percent_connected()
        told = "" if connected is None else f", connected {connected:.3g} %"
        text = (
            f"epoch {epoch} step {step}: loss {means['Loss']:.4f} "
            f"({terms}){told}, gradient {norm:.3f}, rate {rate:.3g}"
        )
        if skipped:
            text += (
                f"; skipped {skipped} steps that were not finite ({self.num_skipped} so far) in "
                f"{', '.join(faulty) or 'the gradient'}"
            )
        self.log.train(
            text,
            f"  [{self.seconds / count:.3f} s a step, {self.waited / count:.3f} s of it for data]",
        )
        times = dict(batch_time=self.seconds / count, data_time=self.waited / count)
        where = dict(epoch=epoch, step=step_in_epoch, Iter=step, lr=rate)
        graph = {} if connected is None else {"graph/connected": connected}
        self.log.scalars(where | times | means | graph, step)
        if connected in CONNECTION_WARNINGS and connected not in self.warned:
            self.warned = [*self.warned, connected]
            self.log.train(CONNECTION_WARNINGS[connected])
        self.reports, self.waited, self.seconds = [], 0.0, 0.0

    def _percent_connected(self):
        """Mean over the steps in which the graph takes part, finite or not; None if in none."""
        shares = [report.connected for report in self.reports if report.connected is not None]
        return 100 * float(_stack(shares).mean()) if shares else None


def _stack(scalars):
    """Scalars of the device as one tensor of the CPU:
    the one place where the log waits for them."""
    scalars = list(scalars)
    # a run that goes on has read the first ones from a file, onto the CPU
    device = scalars[-1].device
    return torch.stack([scalar.to(device, non_blocking=True) for scalar in scalars]).cpu()


def _mean(values, is_finite):
    """Mean of the finite steps' scalars; NaN if there was none."""
    values = values[is_finite]
    return float(values.mean()) if len(values) else float("nan")
