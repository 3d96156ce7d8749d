"""The loop of a run over epochs: trains, validates, keeps the best model, stops
(docs/method.md, section 6)."""

from typing import NamedTuple

from tqdm import tqdm

from ..data.batches import batches
from ..evaluation import encoding, metrics
from ..evaluation.metrics import Scores
from ..system import distributed
from ..system.distributed import print_line
from ..system.errors import InputError
from ..system.interrupt import Interrupt
from . import engine, optim, reporting
from .run_state import RunState
from .schedule import Schedule


class Result(NamedTuple):
    """The result of a run: scores of the best model on the test split by label, and seconds per
    training step."""

    scores: dict[str, Scores]
    seconds_a_step: float


class Training:
    """The loop of one run over steps and epochs: trains, validates and saves."""

    def __init__(self, state: RunState) -> None:
        self.state, self.first_step, self.seconds = state, state.step, 0.0  # of this process
        self.replicas = distributed.wrap_ddp(engine.BatchLoss(state.model, state.objective))

    def run(self) -> Result:
        """Train the remaining epochs, then write the table of the best model on the test split."""
        state = self.state
        with Interrupt() as self.interrupt:
            state.save()
            if state.options.init_from and state.step == 0 and state.best_rsum < 0:
                # the initial model, which stays the best one if training makes it worse
                self._validate()
                state.save()
            while state.epoch < state.options.num_epochs:
                self._train_epoch()
                self._validate()
                state.epoch, state.step_in_epoch = state.epoch + 1, 0
                state.save()
                self._stop_on_signal(distributed.all_reduce_max(self.interrupt.status))
        with distributed.raise_on_all_ranks():
            scores = reporting.write_table(state)
        return Result(scores, self.seconds / max(state.step - self.first_step, 1))

    def _train_epoch(self):
        """Train on the rest of the epoch."""
        state, options, epoch = self.state, self.state.options, self.state.epoch
        schedule = Schedule(
            options.schedule, options.lr_schedules, options.decay_rate, options.lr_warmup,
            len(state.loader) * options.num_epochs,
        )  # fmt: skip
        state.loader.sampler.epoch, state.loader.sampler.first = epoch, state.step_in_epoch

        def on_step(step, step_report, waited, seconds):
            state.step, state.step_in_epoch = step, state.step_in_epoch + 1
            self.seconds += seconds
            if state.average and epoch >= options.average_from:
                state.average.update(state.model, step_report.is_finite)
            rate = optim.learning_rate(state.optimizer)
            state.step_log.add(epoch, state.step_in_epoch, step, rate, step_report, waited, seconds)
            if (
                options.val_step
                and step % options.val_step == 0
                and state.step_in_epoch < len(state.loader)
            ):
                self._validate()
            if step % engine.MOST_SKIPPED == 0:
                self._stop_if_diverged()
            # read once, and in all processes alike: a signal during saving waits for the next step
            status = distributed.all_reduce_max(self.interrupt.status)
            if status or options.save_step and step % options.save_step == 0:
                state.save()
            self._stop_on_signal(status)

        loaded = batches(state.loader, pin_memory=state.device.type == "cuda")
        bar = tqdm(
            distributed.synchronised_iterator(loaded),
            f"epoch {epoch}",
            total=len(state.loader),
            initial=state.step_in_epoch,
            leave=False,
            disable=distributed.progress_disabled(),
        )
        engine.train_epoch(
            state.model, state.objective, state.optimizer, bar, step=state.step, seed=options.seed,
            warmup=options.warmup,
            hardest=options.max_violation or epoch >= options.vse_mean_warmup_epochs,
            grad_clip=options.grad_clip, precision=options.precision, device=state.device,
            on_step=on_step, skipped=state.skipped, replicas=self.replicas,
            rate_factor=lambda step: schedule.factor(epoch, step),
        )  # fmt: skip
        rate = optim.learning_rate(state.optimizer)
        state.step_log.write(epoch, state.step_in_epoch, state.step, rate)
        self._stop_if_diverged()

    def _stop_on_signal(self, status):
        """Exit with this status, that of a signal to one of the processes, unless it is 0.
        Everything is saved."""
        state = self.state
        if status:
            print_line(
                f"stopped at step {state.step}, saved in {state.last_file}; to resume, repeat the "
                "command with --resume auto"
            )
            raise SystemExit(status)

    def _stop_if_diverged(self):
        """Stop after too many consecutive steps that were not finite; they changed nothing."""
        state = self.state
        if int(state.skipped) >= engine.MOST_SKIPPED:
            rate = state.optimizer.param_groups[0]["lr"]
            state.step_log.write(state.epoch, state.step_in_epoch, state.step, rate)
            state.skipped.zero_()
            state.save()
            reason = (
                f"{state.last_file}: training has diverged at step {state.step} (found a loss or "
                f"gradient that is not finite in {engine.MOST_SKIPPED} consecutive steps, expected "
                "finite numbers; train.txt names the terms). The file contains the weights from "
                "before these steps. Check the data with `python -m lib.data check` "
                "(`python -m hrem.data check` if installed), then start a new run with a smaller "
                "--learning_rate or --precision fp32, or resume with --resume auto"
            )
            with distributed.raise_on_all_ranks():
                raise InputError(reason)

    def _validate(self):
        """Evaluate the model, and the average of its weights if there is one, on the validation
        split, and save the best so far."""
        state = self.state
        self._validate_one(state.model)
        if state.average and int(state.average.steps):
            self._validate_one(state.average.model, is_average=True)

    def _validate_one(self, model, is_average=False):
        state = self.state
        with distributed.raise_on_all_ranks():
            similarities = encoding.similarities(model, state.data.validation, state.device)
        scores = distributed.broadcast_from_main(
            lambda: metrics.scores(metrics.ranks(similarities))
        )
        is_best = scores.rsum > state.best_rsum
        reporting.write_validation(state, scores, is_best, is_average)
        if state.log.tensorboard and not is_average:
            reporting.log_pictures(state, similarities)
        if is_best:
            state.best_rsum = scores.rsum
            epoch = state.epoch + (state.step > 0)
            state.write(state.best_file, epoch, model, is_average=is_average)
