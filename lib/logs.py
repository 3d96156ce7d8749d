"""What a run leaves in its folder to be read: text logs, options and TensorBoard curves (SPEC section 9).

The text logs hold no times and no paths of the moment, so that two runs of one seed write the same bytes; times stand
on the console and in TensorBoard. The only file that knows tensorboard_logger.
"""

from pathlib import Path

import torch
from tqdm import tqdm

try:
    from tensorboard_logger import Logger as TensorBoard
except (ImportError, TypeError) as error:  # TypeError: protobuf 4 or later
    TensorBoard, WHY_NO_TENSORBOARD = None, str(error).splitlines()[0]

TRAIN, EVAL, PARAMETERS = "train.txt", "eval.txt", "Parameters.txt"


class RunLog:
    """The logs of one run in `folder`, which is made if it is missing; logs of an earlier run there are replaced."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in [TRAIN, EVAL, PARAMETERS, *(path.name for path in self.folder.glob("events.out.tfevents.*"))]:
            (self.folder / old).unlink(missing_ok=True)
        self.tensorboard = TensorBoard(str(self.folder), flush_secs=2) if TensorBoard else None
        if not TensorBoard:
            say(f"TensorBoard curves are not written: tensorboard_logger does not import ({WHY_NO_TENSORBOARD})")

    def parameters(self, options):
        """Write the options, a dict, one a line."""
        lines = [f"{name}: {value}\n" for name, value in sorted(options.items())]
        (self.folder / PARAMETERS).write_text("".join(lines), encoding="utf-8")

    def train(self, text, times=""):
        """A line of train.txt; `times` follows it on the console only."""
        self._line(TRAIN, text, times)

    def evaluation(self, text):
        """A line of eval.txt."""
        self._line(EVAL, text)

    def scalars(self, values, step):
        """Points of TensorBoard curves: a dict of name -> number, at optimisation step `step`."""
        if self.tensorboard:
            for name, value in values.items():
                self.tensorboard.log_value(name, value, step=step)

    def _line(self, file, text, times=""):
        say(text + times)
        with open(self.folder / file, "a", encoding="utf-8") as log:
            log.write(text + "\n")


def say(text):
    """Print a line without tearing a progress bar."""
    tqdm.write(text)


class StepLog:
    """Averages what the steps report and writes it every `log_step` steps: the only place that waits for the GPU."""

    def __init__(self, log, log_step):
        self.log, self.log_step = log, log_step
        self.num_skipped = 0
        self._clear()

    def _clear(self):
        self.reports, self.waited, self.seconds = [], 0.0, 0.0

    def add(self, epoch, step_in_epoch, step, rate, report, waited, seconds):
        """Take the `lib.engine.StepReport` of one step; rate: the learning rate; waited, seconds: of this step."""
        self.reports.append(report)
        self.waited += waited
        self.seconds += seconds
        if len(self.reports) >= self.log_step:
            self.write(epoch, step_in_epoch, step, rate)

    def write(self, epoch, step_in_epoch, step, rate):
        """Write the mean of the steps since the last line, if there were any."""
        if not self.reports:
            return
        count = len(self.reports)
        is_finite = torch.stack([report.is_finite for report in self.reports]).cpu()
        means = {"Loss": _mean([report.loss for report in self.reports], is_finite)}
        for name in self.reports[-1].terms:
            has_term = [name in report.terms for report in self.reports]
            values = [report.terms[name] for report in self.reports if name in report.terms]
            means["Loss_" + name] = _mean(values, is_finite[torch.tensor(has_term)])
        norm = _mean([report.gradient_norm for report in self.reports], is_finite)
        skipped = count - int(is_finite.sum())
        self.num_skipped += skipped
        terms = ", ".join(f"{name.removeprefix('Loss_')} {value:.4f}" for name, value in list(means.items())[1:])
        text = f"epoch {epoch} step {step}: loss {means['Loss']:.4f} ({terms}), gradient {norm:.3f}, rate {rate:.3g}"
        if skipped:
            text += f"; skipped {skipped} steps whose loss was not finite ({self.num_skipped} so far)"
        self.log.train(text, f"  [{self.seconds / count:.3f} s a step, {self.waited / count:.3f} s of it for data]")
        times = dict(batch_time=self.seconds / count, data_time=self.waited / count)
        where = dict(epoch=epoch, step=step_in_epoch, Iter=step, lr=rate)
        self.log.scalars(where | times | means, step)
        self._clear()


def _mean(values, is_finite):
    """Mean of the finite steps' scalars; NaN if there was none."""
    values = torch.stack(values).cpu()[is_finite]
    return float(values.mean()) if len(values) else float("nan")
