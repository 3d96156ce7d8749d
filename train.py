"""Train HREM:  python train.py --data_path data/ --dataset f30k --logger_name runs/f30k_test

Logs, curves and the best model go into the run folder; the best model's table on the test split ends the run.
"""

if __name__ == "__main__":
    import lib.start  # noqa: F401  before the imports that take seconds

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import arguments
import graph_lib
from eval import load_split, open_folder, summarise
from lib import bert, charts, checkpoint, distributed, engine, metrics, optim, report
from lib.dataset import RetrievalDataset, TrainingPairs, batches, test_split, training_loader
from lib.errors import InputError, command_line
from lib.files import atomic_write
from lib.interrupt import Interrupt
from lib.layout import read_lines
from lib.logs import NoLog, RunLog, StepLog, print_line
from lib.model import build_model, load_model
from lib.run_folder import RunFolder
from lib.vocabulary import Vocabulary, frequent_words, read_glove, word_embeddings

MOST_DRAWN = 64  # pairs of the batch whose graph TensorBoard shows


class Data(NamedTuple):
    """The three splits of a run; test may be the same object as validation."""

    train: RetrievalDataset
    validation: RetrievalDataset
    test: RetrievalDataset


class Result(NamedTuple):
    """What came of a run: scores of the best model on the test split by label, and seconds a step of training took."""

    scores: dict
    seconds_a_step: float


class Training:
    """One run: everything that is trained or counted, and the loop over epochs."""

    def __init__(self, options):
        with distributed.together():
            self._open(options)
        self.replicas = distributed.replicate(engine.BatchLoss(self.model, self.objective))

    def _open(self, options):
        """Open the data, build what is trained, and start the run or go on with it."""
        self.options = options
        folder = Path(options.model_name)
        self.best_file, self.last_file = folder / checkpoint.BEST, folder / checkpoint.LAST
        resumed_file = checkpoint.find_resumed(folder, options.resume, options.overwrite)
        content = checkpoint.load_run(resumed_file) if resumed_file else None
        self.device = engine.choose_device(options.device, distributed.gpu(options.gpu_id))
        self.vocabulary = distributed.in_turn(lambda: read_vocabulary(options))
        self.data = distributed.in_turn(lambda: open_data(options, self.vocabulary))
        options.img_dim = self.data.train.region_dim
        if content:
            arguments.check_resumed(resumed_file, vars(options), content["options"])
        torch.use_deterministic_algorithms(bool(options.deterministic))
        torch.manual_seed(options.seed)
        reader = read_embeddings(options, self.vocabulary) if self.vocabulary else bert.model(options.bert_path)
        check_memory(options, reader, self.data.train.regions.shape, self.device)
        self.model = build_model(vars(options), reader, options.img_dim).to(self.device)
        if options.compile:
            self.model.compile(dynamic=True)  # what training calls; evaluation calls the encoders, as they are
        self.objective = build_objective(options).to(self.device)
        self.optimizer = optim.build(self.model, self.objective, options.learning_rate, options.graph_lr_factor)
        pairs = TrainingPairs(self.data.train, options.seed, drop_regions=bool(options.size_augment))
        cores = max((os.cpu_count() or 1) // distributed.processes_here(), 1)
        workers = min(options.workers, cores)  # more would only queue for them
        clusters = {"random": None, "neighbour": options.batch_clusters}[options.batch_sampling]
        self.loader = training_loader(pairs, options.batch_size, workers, clusters)
        self.skipped = torch.zeros((), dtype=torch.int32, device=self.device)
        self.epoch, self.step_in_epoch, self.step, self.best_rsum = 0, 0, 0, -1.0
        if content:
            self._restore(resumed_file, content)
        else:
            self._start()
        self.first_step, self.seconds = self.step, 0.0  # of this process
        self._announce(resumed_file)

    def _start(self):
        """Begin a run in a folder without an earlier one, or in place of it."""
        self._open_log()
        if not distributed.is_first():
            return
        Path(self.options.model_name).mkdir(parents=True, exist_ok=True)
        report.remove(self.options.logger_name)
        self.best_file.unlink(missing_ok=True)

    def _open_log(self, sizes=None, state=None):
        """The log, from the moment at which it had these `sizes`, and what of it was not written, its `state`."""
        self.log = RunLog(self.options.logger_name, sizes) if distributed.is_first() else NoLog()
        self.step_log = StepLog(self.log, self.options.log_step, state)

    def _restore(self, path, content):
        """Go on from what `_save` wrote, in its own folder or in another one."""
        checkpoint.check_progress(path, content, len(self.loader), self.options.num_epochs)
        checkpoint.restore(path, content, self.model, self.objective, self.optimizer)
        position = content["position"]
        self.epoch, self.step_in_epoch = content["epoch"], position["step_in_epoch"]
        self.skipped.fill_(position["skipped"])
        self.step, self.best_rsum = content["step"], content["best_rsum"]
        is_own = self.last_file.exists() and path.samefile(self.last_file)
        self._open_log(position["log_sizes"] if is_own else None, position["step_log"])
        if not is_own:
            self._take_best_model(path.with_name(checkpoint.BEST))

    def _take_best_model(self, path):
        """Copy the best model so far of the run that this one goes on from; without it the next one is the best."""
        if not path.exists():
            self.best_rsum = -1.0
        if not distributed.is_first():
            return
        Path(self.options.model_name).mkdir(parents=True, exist_ok=True)
        if path.exists():
            with atomic_write(self.best_file) as file:
                file.write(path.read_bytes())
        else:
            self.best_file.unlink(missing_ok=True)

    def _announce(self, resumed_file):
        """Say once what runs where; a run that goes on has said so in its log before."""
        options = self.options
        graph = "no instance graph" if options.interaction == "none" else f"graph from step {options.warmup} on"
        self.log.parameters(vars(options))
        tell = print_line if resumed_file else self.log.train
        for name, split in self.data._asdict().items():
            tell(
                f"{name}: {split.split} split of {split.folder}, {split.num_images} images x "
                f"{split.regions.shape[1]} regions x {split.region_dim}, {split.num_captions} captions"
            )
        if self.vocabulary:
            tell(
                f"vocabulary: {len(self.vocabulary.words)} words that the training captions hold at least "
                f"{options.min_word_count} times"
            )
        tell(
            f"parameters: image encoder {count(self.model.image_encoder)}, text encoder "
            f"{count(self.model.text_encoder)}, instance graph {count(self.objective)} (training only)"
        )
        if distributed.size() > 1:
            tell(f"{distributed.size()} processes, {options.batch_size // distributed.size()} pairs of a batch in each")
        tell(f"method {options.method}, batches {self.loader.sampler.describe()}")
        tell(
            f"device {self.device} ({device_name(self.device)}), seed {options.seed}; {len(self.loader)} steps an "
            f"epoch, {options.num_epochs} epochs, {graph}; the best epoch by rsum on "
            f"{options.val_split} is kept in {self.best_file}"
        )
        steps = len(self.loader) * options.num_epochs
        if options.interaction != "none" and options.warmup >= steps:
            tell(
                f"warning: --warmup {options.warmup} is not over within the {steps} steps of this run: the instance "
                "graph takes no part in it, what is trained is the base model; give a smaller one"
            )
        if resumed_file:
            print_line(
                f"going on from {resumed_file}: epoch {self.epoch}, step {self.step}, best rsum {self.best_rsum:.1f}"
            )

    def run(self):
        """All epochs that are left, then the table of the best model on the test split. Returns `Result`."""
        with Interrupt() as self.interrupt:
            self._save()
            while self.epoch < self.options.num_epochs:
                self._train_epoch()
                self._validate()
                self.epoch, self.step_in_epoch = self.epoch + 1, 0
                self._save()
                self._stop_if(distributed.largest(self.interrupt.status))
        with distributed.together():
            scores = self._report()
        return Result(scores, self.seconds / max(self.step - self.first_step, 1))

    def _train_epoch(self):
        options, epoch = self.options, self.epoch
        optim.set_rates(self.optimizer, epoch, options.lr_schedules, options.decay_rate)
        rate = self.optimizer.param_groups[0]["lr"]
        self.loader.sampler.epoch, self.loader.sampler.first = epoch, self.step_in_epoch

        def on_step(step, step_report, waited, seconds):
            self.step, self.step_in_epoch = step, self.step_in_epoch + 1
            self.seconds += seconds
            self.step_log.add(epoch, self.step_in_epoch, step, rate, step_report, waited, seconds)
            if options.val_step and step % options.val_step == 0 and self.step_in_epoch < len(self.loader):
                self._validate()
            if step % engine.MOST_SKIPPED == 0:
                self._stop_if_stuck()
            # read once: what comes after the saving waits for the next step; the processes agree on it
            status = distributed.largest(self.interrupt.status)
            if status or options.save_step and step % options.save_step == 0:
                self._save()
            self._stop_if(status)

        bar = tqdm(
            distributed.each(batches(self.loader, pin_memory=self.device.type == "cuda")), f"epoch {epoch}",
            total=len(self.loader), initial=self.step_in_epoch, leave=False, disable=distributed.no_bar(),
        )  # fmt: skip
        engine.train_epoch(
            self.model, self.objective, self.optimizer, bar, step=self.step, seed=options.seed, warmup=options.warmup,
            hardest=options.max_violation or epoch >= options.vse_mean_warmup_epochs, grad_clip=options.grad_clip,
            precision=options.precision, device=self.device, on_step=on_step, skipped=self.skipped,
            replicas=self.replicas,
        )  # fmt: skip
        self.step_log.write(epoch, self.step_in_epoch, self.step, rate)
        self._stop_if_stuck()

    def _save(self):
        """Write all that the run needs to go on, bit for bit, as if it had never stopped."""
        position = dict(
            step_in_epoch=self.step_in_epoch, skipped=int(self.skipped), log_sizes=self.log.sizes(),
            step_log=self.step_log.state(),
        )  # fmt: skip
        self._write(self.last_file, self.epoch, position=position)

    def _write(self, path, epoch, **more):
        with distributed.together():
            if distributed.is_first():
                checkpoint.save(
                    path, self.model, self.objective, self.optimizer, epoch=epoch, step=self.step,
                    best_rsum=self.best_rsum, options=vars(self.options),
                    vocabulary=self.vocabulary and self.vocabulary.words, **more,
                )  # fmt: skip

    def _stop_if(self, status):
        """Leave with this exit status, that of a signal that one of the processes got, unless it is 0; all is saved."""
        if status:
            print_line(
                f"stopped at step {self.step}, saved in {self.last_file}: the same command with --resume auto goes on"
            )
            raise SystemExit(status)

    def _stop_if_stuck(self):
        """Leave after too many steps in a row that were not finite; they changed nothing."""
        if int(self.skipped) >= engine.MOST_SKIPPED:
            rate = self.optimizer.param_groups[0]["lr"]
            self.step_log.write(self.epoch, self.step_in_epoch, self.step, rate)
            self.skipped.zero_()
            self._save()
            reason = (
                f"{self.last_file}: stopped at step {self.step}: the loss or its gradient was not finite in "
                f"{engine.MOST_SKIPPED} steps in a row (train.txt names the terms), expected numbers; the file holds "
                "the weights from before the first of them: check the data with python -m lib.dataset, then start anew "
                "with a smaller --learning_rate or --precision fp32, or go on with --resume auto"
            )
            with distributed.together():
                raise InputError(reason)

    def _validate(self):
        options = self.options
        with distributed.together():
            similarities = engine.similarities(self.model, self.data.validation, self.device)
        scores = distributed.from_first(lambda: metrics.scores(metrics.ranks(similarities)))
        is_best = scores.rsum > self.best_rsum
        self.log.evaluation(
            f"epoch {self.epoch} step {self.step} {options.val_split}: "
            f"image to text {row(scores.image_to_text)}; text to image {row(scores.text_to_image)}; "
            f"rsum {scores.rsum:.1f}" + (" (best so far)" if is_best else "")
        )
        values = dict(zip(("r1", "r5", "r10", "medr", "meanr"), scores.image_to_text))
        values |= dict(zip(("r1i", "r5i", "r10i", "medri", "meanri"), scores.text_to_image), rsum=scores.rsum)
        self.log.scalars(values, self.step)
        if self.log.tensorboard:
            self._draw(similarities)
        if is_best:
            self.best_rsum = scores.rsum
            self._write(self.best_file, self.epoch + 1)

    def _draw(self, similarities):
        """What TensorBoard shows beside scalars: similarities of pairs; once it takes part, the graph of one batch."""
        options = self.options
        pairs = metrics.pair_similarities(similarities)
        self.log.histograms({f"similarity/{name}": values for name, values in pairs._asdict().items()}, self.step)
        if self.step >= options.warmup and options.interaction != "none":
            num_pairs = min(options.batch_size, MOST_DRAWN)
            with distributed.alone():
                found = graph_lib.relation_matrices(
                    self.model, self.objective, self.data.validation, num_pairs, self.device
                )
            connection = 255 * found.is_connected.numpy().astype(np.uint8)[..., None]
            relevance = found.relevance.numpy()
            self.log.images({"graph/connection": connection, "graph/relevance": charts.grey(relevance)}, self.step)
            ends = {"graph/relevance_lowest": relevance.min(), "graph/relevance_highest": relevance.max()}
            self.log.scalars(ends, self.step)

    def _report(self):
        options, split = self.options, self.data.test.split
        validations = report.read_validations(options.logger_name)
        if validations:
            title = f"{options.dataset}, split {options.val_split}: {len(validations)} validations"
            self.log.evaluation(f"\n{title}; * marks the best by rsum\n\n{report.markdown_of_validations(validations)}")
        best = checkpoint.load(self.best_file)
        model = load_model(self.best_file, best, options.bert_path, options.img_dim, self.device)
        similarities = engine.similarities(model, self.data.test, self.device)

        def written():
            text, scores, facts = summarise(similarities, options.dataset, split, [best])
            self.log.evaluation("\n" + text)
            report.save(options.logger_name, split, text, scores, facts)
            if options.save_results:
                report.save_similarities(Path(options.logger_name) / f"results_{options.dataset}.npy", similarities)
            return scores

        return distributed.from_first(written)


def read_vocabulary(options):
    """The `Vocabulary` of the training captions, or None where BERT reads them. Raises InputError."""
    if options.text_encoder == "bert":
        return None
    path = open_folder(options.data_path, options.dataset) / "train_caps.txt"
    words = frequent_words(read_lines(path), options.min_word_count)
    if not words:
        raise InputError(
            f"{path}: no word occurs {options.min_word_count} times, expected a vocabulary; give a smaller "
            "--min_word_count"
        )
    return Vocabulary(words)


def read_embeddings(options, vocabulary):
    """The word embeddings that training starts from, random or of --glove. Raises InputError."""
    embeddings = word_embeddings(vocabulary, options.word_dim)
    if options.glove:
        found = read_glove(options.glove, vocabulary, embeddings)
        print_line(f"{options.glove}: vectors of {found} of {len(vocabulary.words)} words; the others start at random")
    return embeddings


def open_data(options, vocabulary=None):
    """The splits of a run, all opened before anything is trained. Raises InputError. Returns `Data`."""
    splits = {
        split: load_split(options.data_path, options.dataset, split, options.bert_path, vocabulary)
        for split in dict.fromkeys(("train", options.val_split, test_split(options.dataset)))
    }
    data = Data(splits["train"], splits[options.val_split], splits[test_split(options.dataset)])
    wanted = getattr(options, "img_dim", data.train.region_dim)
    for split in data:
        if split.region_dim != wanted:
            raise InputError(
                f"{split.regions_path}: found regions of {split.region_dim} features, expected {wanted} as in "
                "--img_dim or the train split; leave --img_dim out, or extract the splits alike"
            )
    return data


def check_memory(options, reader, regions_shape, device):
    """Refuse a model or a batch that this machine has no memory for, before it is made. Raises InputError.

    On a CPU a parameter has a gradient and two moments beside it; a GPU tells by itself what it cannot hold.
    """
    with torch.device("meta"):  # shapes without values, and no random number drawn
        modules = build_model(vars(options), reader, options.img_dim), build_objective(options)
    copies = 4 if device.type == "cpu" else 1
    parameters = sum(parameter.numel() for module in modules for parameter in module.parameters())
    needed = 4 * (copies * parameters + options.batch_size * regions_shape[1] * regions_shape[2])
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > found:
        raise InputError(
            f"--embed_size {options.embed_size}, --num_layers_enc {options.num_layers_enc}, --topk {options.topk}, "
            f"--batch_size {options.batch_size}: training needs more than {needed / 1e9:.0f} GB of memory, found "
            f"{found / 1e9:.0f} GB, expected it to fit: give smaller ones"
        )


def build_objective(options):
    """The training objective that the options describe."""
    return graph_lib.Objective(
        options.embed_size,
        heads=options.nhead,
        dropout=options.dropout,
        layers=options.num_layers_enc,
        mask_weight=options.mask_weight,
        topk=options.topk,
        threshold=options.threshold,
        base_loss=options.base_loss,
        gnn_loss=options.gnn_loss,
        margin=options.margin,
        longest_distance=graph_lib.longest_distance(options.dataset),
        mask_repeat=bool(options.mask_repeat),
        norm_input=bool(options.norm_input),
        cross_loss=bool(options.cross_loss),
        reg_loss_weight=options.reg_loss_weight,
        interaction=options.interaction,
        relation=options.relation,
        use_relevance=bool(options.relevance),
        use_connection=bool(options.connection),
        distance=options.distance,
        mask_padding=bool(options.mask_padding),
    )


def count(module):
    """Number of parameters of a module, in millions."""
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.2f} M"


def device_name(device):
    """What a reader of the log wants to know of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads"


def row(recalls):
    """One direction of a table on one line."""
    r1, r5, r10, median, mean = recalls
    return f"R@1 {r1:.1f} R@5 {r5:.1f} R@10 {r10:.1f} median {median:.0f} mean {mean:.1f}"


def main(argv=None):
    """The program; argv: its arguments, or those of the process. Returns the `Result` of each run."""
    with distributed.processes():
        with distributed.together():
            runs = read_command_line(argv)
        return train(runs)


def read_command_line(argv):
    """The options of each run. Raises InputError."""
    parser = arguments.training_parser()
    graph_lib.add_options(parser)
    runs = arguments.runs(arguments.parse_training(parser, argv))
    for options in runs:  # all of them before the first is trained
        checkpoint.find_resumed(options.model_name, options.resume, options.overwrite)
    return runs


def train(runs):
    """Train one run after the other, each with its options. Raises InputError. Returns the `Result` of each."""
    size, results = runs[0].batch_size, []
    remedy = f"try --batch_size {max(size // 2, 2)} or --precision bf16, or end other programs on the GPU"
    for options in runs:
        with RunFolder(options.logger_name).keep_traceback(), engine.memory_errors(f"--batch_size {size}", remedy):
            results.append(Training(options).run())
    return results


if __name__ == "__main__":
    command_line(main)
