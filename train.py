"""Train HREM:  python train.py --data_path data/ --dataset f30k --logger_name runs/f30k_test

Logs, curves and the best model go into the run folder; the best model's table on the test split ends the run.
"""

if __name__ == "__main__":
    import lib.start  # noqa: F401  before the imports that take seconds

import os
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import arguments
import graph_lib
from eval import find_facts, load_split, open_folder, save, summarise
from lib import bert, charts, checkpoint, distributed, engine, fingerprint, metrics, optim, pretrained, report
from lib.dataset import NO_SPLIT, RetrievalDataset, TrainingPairs, batches, conventions, training_loader
from lib.errors import InputError, command_line, first_sentence
from lib.interrupt import Interrupt
from lib.layout import read_lines
from lib.logs import NoLog, RunLog, StepLog, print_line
from lib.model import build_model, load_model
from lib.result_names import ResultName
from lib.run_start import RunFolders, find_best_rsum
from lib.vocabulary import (
    Vocabulary,
    describe_merged,
    describe_vectors,
    frequent_words,
    merged_words,
    read_glove,
    word_embeddings,
)

MOST_DRAWN = 64  # pairs of the batch whose graph TensorBoard shows


class Data(NamedTuple):
    """The three splits of a run; test may be the same object as validation, or None: no test table is written."""

    train: RetrievalDataset
    validation: RetrievalDataset
    test: RetrievalDataset | None


class Result(NamedTuple):
    """What came of a run: scores of the best model on the test split by label, and seconds a step of training took."""

    scores: dict
    seconds_a_step: float


class Training:
    """One run: everything that is trained or counted, and the loop over epochs."""

    def __init__(self, options, folders):
        """options: of the command line; folders: the `RunFolders` of the run."""
        with distributed.together():
            self._open(options, folders)
        self.replicas = distributed.replicate(engine.BatchLoss(self.model, self.objective))

    def _open(self, options, folders):
        """Open the data, build what is trained, and start the run or go on with it."""
        self.options, self.folders = options, folders
        self.best_file, self.last_file = folders.best_file, folders.last_file
        if distributed.is_first():
            folders.lock_existing()
        resumed_file = folders.find_resumed(options.resume, options.overwrite)
        content = checkpoint.load_run(resumed_file) if resumed_file else None
        self.device = engine.choose_device(options.device, distributed.gpu(options.gpu_id))
        trained = pretrained.read(options.init_from, vars(options)) if options.init_from and not content else None
        distributed.in_turn(lambda: choose_conventions(options, content["options"] if content else {}))
        self.vocabulary = distributed.in_turn(lambda: read_vocabulary(options, resumed_file, content, trained))
        self.data = distributed.in_turn(lambda: open_data(options, self.vocabulary))
        options.img_dim = self.data.train.region_dim
        if content:
            arguments.check_resumed(resumed_file, vars(options), content["options"])
        engine.set_determinism(bool(options.deterministic), self.device)
        torch.manual_seed(options.seed)
        reader = read_embeddings(options, self.vocabulary) if self.vocabulary else bert.model(options.bert_path)
        self.fingerprint = fingerprint.of_run(self.data, None if self.vocabulary else reader)
        self.reader = None
        if not self.vocabulary:
            settings, tokeniser = self.fingerprint["bert"]["settings"], self.data.train.tokeniser_digest
            self.reader = dict(settings=settings, tokeniser=tokeniser)
            if trained:
                fingerprint.check_reader(options.init_from, trained.reader, options.bert_path, self.reader)
        if content:
            self._check_data(resumed_file, content["position"].get("data"))
        check_memory(options, reader, self.data.train.regions.shape, self.device)
        self.model = build_model(vars(options), reader, options.img_dim).to(self.device)
        if trained:
            pretrained.load(options.init_from, trained, self.model, options.img_dim)
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
        self._start(resumed_file, content)
        self.first_step, self.seconds = self.step, 0.0  # of this process
        self._announce(resumed_file, trained)

    def _check_data(self, path, saved):
        """Compare data and BERT with those that the run began with, `saved`. Raises InputError where they differ."""
        options = self.options
        lines = fingerprint.check_resumed(
            path, saved, self.fingerprint, self.data.train.folder, options.bert_path, options.allow_changed_data
        )
        for line in lines:
            print_line(line)

    def _restore(self, path, content):
        """Take over what `_save` wrote of this run or another. Changes no file."""
        checkpoint.check_progress(path, content, len(self.loader), self.options.num_epochs)
        checkpoint.restore(path, content, self.model, self.objective, self.optimizer)
        position = content["position"]
        self.epoch, self.step_in_epoch = content["epoch"], position["step_in_epoch"]
        self.skipped.fill_(position["skipped"])
        self.step = content["step"]
        self.best_rsum = find_best_rsum(path, content, self.options.num_epochs, self.model)
        split = self.data.validation.split
        if not fingerprint.is_same((position.get("data") or {}).get(split, {}), self.fingerprint[split]):
            self.best_rsum = -1.0
            print_line(f"warning: the best score so far is of other {split} data: the next model becomes the best")

    def _start(self, resumed_file, content):
        """Start the run in its folders, or go on there, and open its log; content: what was restored, or None."""
        options, position = self.options, content and content["position"]
        sizes = None
        if distributed.is_first():
            has_log = self.folders.start(resumed_file, self._tables(), options.resume, options.overwrite)
            sizes = position["log_sizes"] if has_log else None
        self.log = RunLog(options.logger_name, sizes) if distributed.is_first() else NoLog()
        self.step_log = StepLog(self.log, options.log_step, position and position["step_log"])

    def _tables(self):
        """Names of the files that the report of this run writes into the folder of its logs."""
        if self.data.test is None:
            return []
        name = self._result_name()
        return [f"{name.table()}.md", report.METRICS, *[name.results()] * bool(self.options.save_results)]

    def _result_name(self):
        dataset, split = self.options.dataset, self.data.test.split
        return ResultName(dataset, dataset, split, test_split=split)

    def _announce(self, resumed_file, trained):
        """Say once what runs where; a run that goes on has said so in its log before.

        trained: the `Checkpoint` whose weights the run starts from, or None.
        """
        options = self.options
        graph = "no instance graph" if options.interaction == "none" else f"graph from step {options.warmup} on"
        self.log.parameters(vars(options))
        tell = print_line if resumed_file else self.log.train
        for name, split in self.data._asdict().items():
            if split is None:
                tell(f"{name}: no such split, so no test table is written; the best model is kept in {self.best_file}")
                continue
            tell(
                f"{name}: {split.split} split of {split.folder}, {split.num_images} images x "
                f"{split.regions.shape[1]} regions x {split.region_dim}, {split.num_captions} captions"
            )
        if self.vocabulary:
            tell(
                f"vocabulary: {len(self.vocabulary.words)} words that the training captions hold at least "
                f"{options.min_word_count} times"
            )
        if note := (self.vocabulary or bert.tokeniser(options.bert_path)).note:
            tell(note)
        tell(
            f"parameters: image encoder {count(self.model.image_encoder)}, text encoder "
            f"{count(self.model.text_encoder)}, instance graph {count(self.objective)} (training only)"
        )
        if trained:
            tell(pretrained.describe(options.init_from, trained, vars(options), self.vocabulary))
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
            if self.options.init_from and self.step == 0 and self.best_rsum < 0:
                self._validate()  # what the run starts from: the best model if training makes it worse
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
            step_log=self.step_log.state(), data=self.fingerprint,
        )  # fmt: skip
        self._write(self.last_file, self.epoch, position=position)

    def _write(self, path, epoch, **more):
        with distributed.together():
            if distributed.is_first():
                self.folders.models.claim(path.name)
                checkpoint.save(
                    path, self.model, self.objective, self.optimizer, epoch=epoch, step=self.step,
                    best_rsum=self.best_rsum, options=vars(self.options),
                    vocabulary=self.vocabulary and self.vocabulary.words, reader=self.reader, **more,
                )  # fmt: skip
                if path == self.last_file:
                    self.folders.saved()

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
            self._write(self.best_file, self.epoch + (self.step > 0))

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
        options = self.options
        validations = report.read_validations(options.logger_name)
        if validations:
            title = f"{options.dataset}, split {options.val_split}: {len(validations)} validations"
            self.log.evaluation(f"\n{title}; * marks the best by rsum\n\n{report.markdown_of_validations(validations)}")
        if self.data.test is None:
            self.log.evaluation(f"\nno test split, so no test table; the best model is in {self.best_file}")
            return {}
        best = checkpoint.load(self.best_file)
        model = load_model(self.best_file, best, options.bert_path, options.img_dim, self.device)
        similarities = engine.similarities(model, self.data.test, self.device)

        def written():
            folder, name = Path(options.logger_name), self._result_name()
            facts = find_facts(options.dataset, self.data.test, [(self.best_file, best)], folder)
            text, scores = summarise(similarities, facts)
            self.log.evaluation("\n" + text)
            save(folder, name, (text, scores, facts), similarities, options.save_results)
            return scores

        return distributed.from_first(written)


def read_vocabulary(options, resumed_file=None, content=None, trained=None):
    """The `Vocabulary` of the training captions, or None where BERT reads them. Raises InputError.

    A run that goes on, from `content`, keeps its own: one edited caption would give most words another one's place. A
    run that starts from a `Checkpoint`, `trained`, keeps its words and adds those that are new.
    """
    if options.text_encoder == "bert":
        return None
    if content and content.get("vocabulary") is not None:
        try:
            return Vocabulary(content["vocabulary"], bool(options.strip_accents))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{resumed_file}: its vocabulary is damaged ({first_sentence(error)}), expected a list of different "
                "words: go on from another file, or start anew with --resume none"
            ) from error
    path = open_folder(options.data_path, options.dataset) / "train_caps.txt"
    texts, strip_accents = read_lines(path), bool(options.strip_accents)
    words = frequent_words(texts, options.min_word_count, strip_accents)
    if not words:
        raise InputError(
            f"{path}: no word occurs {options.min_word_count} times, expected a vocabulary; give a smaller "
            "--min_word_count"
        )
    note = describe_merged(merged_words(texts, words)) if strip_accents else ""
    found = Vocabulary(words, strip_accents, note)
    return pretrained.extend(found, trained.vocabulary) if trained else found


def choose_conventions(options, begun):
    """Fill in --test_split and --longest_distance where they are not given: as the run began, or as the data say.

    begun: the options of the run that goes on, or none. Raises InputError where there is no such data set.
    """
    found = conventions(open_folder(options.data_path, options.dataset), options.dataset)
    if begun:  # before there was this option, the name alone decided
        found = found._replace(longest_distance=graph_lib.longest_distance(options.dataset))
    unknown = [name for name in ("test_split", "longest_distance") if getattr(options, name) is None]
    for name in unknown:
        setattr(options, name, begun.get(name, getattr(found, name)))
    if found.note and unknown and not begun:
        print_line(found.note)


def read_embeddings(options, vocabulary):
    """The word embeddings that training starts from, random or of --glove. Raises InputError."""
    embeddings = word_embeddings(vocabulary, options.word_dim)
    if options.glove:
        found = read_glove(options.glove, vocabulary, embeddings)
        counted = f"{found.num_found} of {len(vocabulary.words)} words"
        print_line(f"{options.glove}: vectors of {counted}; the others start at random")
        if warning := describe_vectors(found, vocabulary):
            print_line(warning)
    return embeddings


def open_data(options, vocabulary=None):
    """The splits of a run, all opened before anything is trained. Raises InputError. Returns `Data`."""
    splits = {
        split: load_split(options.data_path, options.dataset, split, options.bert_path, vocabulary)
        for split in dict.fromkeys(("train", options.val_split, options.test_split))
        if split != NO_SPLIT
    }
    data = Data(splits["train"], splits[options.val_split], splits.get(options.test_split))
    wanted = getattr(options, "img_dim", data.train.region_dim)
    for split in splits.values():
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
        longest_distance=options.longest_distance or graph_lib.longest_distance(options.dataset),
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
    if any(text.startswith("--deterministic") for text in (sys.argv if argv is None else argv)):
        engine.prepare_determinism()  # before anything else: several processes start CUDA first of all
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
        RunFolders(options.model_name, options.logger_name).find_resumed(options.resume, options.overwrite)
    return runs


def train(runs):
    """Train one run after the other, each with its options. Raises InputError. Returns the `Result` of each."""
    size, results = runs[0].batch_size, []
    remedy = f"try --batch_size {max(size // 2, 2)} or --precision bf16, or end other programs on the GPU"
    for options in runs:
        with engine.memory_errors(f"--batch_size {size}", remedy):
            results.append(train_one(options))
    return results


def train_one(options):
    """One run, with its folders locked meanwhile. Raises InputError. Returns `Result`."""
    with RunFolders(options.model_name, options.logger_name) as folders, folders.logs.keep_traceback():
        return Training(options, folders).run()


if __name__ == "__main__":
    command_line(main)
