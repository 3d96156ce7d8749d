"""The state of a run: everything that is trained or counted, built, saved and restored
(docs/method.md, section 8)."""

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data import extraction_record, fingerprint
from ..data.batches import TrainingPairs, training_loader
from ..model import bert, casting, checkpoint, pretrained, saved_bert
from ..model.network import build_model
from ..model.saved_bert import SavedBert
from ..system import devices, distributed
from ..system.distributed import print_line
from . import optim
from .averaging import WeightAverage
from .logs import NullLog, RunLog, StepLog
from .reporting import find_tables, log_setup
from .run_parts import (
    build_objective,
    check_memory,
    choose_conventions,
    find_bert,
    frozen_words,
    open_data,
    read_embeddings,
    read_vocabulary,
)
from .run_start import RunFolders, check_resumed, find_best_rsum


class RunState:
    """Everything that is trained or counted in one run: built, saved and restored.

    data: `Data`; vocabulary: of a text encoder that reads words, or None; model, objective,
    optimizer, loader; log, step_log: its logs; epoch, step_in_epoch, step: its position; skipped:
    number of consecutive steps that were not finite, a scalar tensor; best_rsum: of its
    validations, -1 before the first; average: a `WeightAverage`, or None.
    """

    def __init__(self, options: argparse.Namespace, folders: RunFolders) -> None:
        """options: of the command line; folders: of the run. Raises InputError."""
        with distributed.raise_on_all_ranks():
            self._open(options, folders)

    def _open(self, options, folders):
        """Open the data, build what is trained, and start or resume the run."""
        self.options, self.folders = options, folders
        self.best_file, self.last_file = folders.best_file, folders.last_file
        if distributed.is_main_process():
            folders.lock_existing()
        resumed_file = folders.find_resumed(options.resume, options.overwrite)
        content = checkpoint.load_run(resumed_file) if resumed_file else None
        self.device = devices.choose_device(options.device, distributed.local_gpu(options.gpu_id))
        trained = (
            pretrained.read(options.init_from, vars(options))
            if options.init_from and not content
            else None
        )
        distributed.main_process_first(lambda: self._open_data(resumed_file, content, trained))
        if content:
            check_resumed(resumed_file, vars(options), content["options"])
        devices.set_determinism(bool(options.deterministic), self.device)
        torch.manual_seed(options.seed)
        reader = self._build_reader(content, trained)
        if content:
            self._check_data(resumed_file, content["position"].get("data"))
        self._build_parts(reader, trained)
        self.skipped = torch.zeros((), dtype=torch.int32, device=self.device)
        self.epoch, self.step_in_epoch, self.step, self.best_rsum = 0, 0, 0, -1.0
        if content:
            self._restore(resumed_file, content)
        self._start(resumed_file, content)
        log_setup(self, resumed_file, trained)

    def _open_data(self, resumed_file, content, trained):
        """Open vocabulary, BERT and splits. content: of `resumed_file`, or None; trained: the
        `Checkpoint` that the run starts from, or None."""
        options = self.options
        choose_conventions(options, content["options"] if content else {})
        self.vocabulary = read_vocabulary(options, resumed_file, content, trained)
        self.bert_path = options.bert_path if self.vocabulary else self._find_bert(content, trained)
        self.data = open_data(options, self.bert_path, self.vocabulary)
        options.img_dim = self.data.train.region_dim
        found = extraction_record.read(self.data.train.folder)
        self.extraction = found or (content or {}).get("extraction")

    def _build_reader(self, content, trained):
        """Build the word embeddings or BERT, and take the fingerprints of BERT and the data."""
        self.reader = self.kept_bert = None
        if self.vocabulary:
            self.fingerprint = fingerprint.of_run(self.data)
            return read_embeddings(self.options, self.vocabulary)
        is_kept = isinstance(self.bert_path, SavedBert)
        reader = bert.model(self.bert_path, pretrained=not is_kept)
        self.fingerprint = fingerprint.of_run(self.data, reader)
        if is_kept:  # its initial weights are not known
            saved = ((content or {}).get("position", {}).get("data") or {}).get("bert", {})
            self.fingerprint["bert"].pop("weights")
            self.fingerprint["bert"] |= {n: saved[n] for n in ("weights",) if n in saved}
        self.reader = dict(
            settings=self.fingerprint["bert"]["settings"],
            tokeniser=self.data.train.tokeniser_digest,
        )
        self.kept_bert = saved_bert.keep(reader.config, bert.tokeniser(self.bert_path))
        if trained:
            fingerprint.check_reader(
                self.options.init_from, trained.reader, self.bert_path, self.reader
            )
        return reader

    def _build_parts(self, reader, trained):
        """Build model, objective, optimiser and loader."""
        options = self.options
        check_memory(options, reader, self.data.train.regions.shape, self.device)
        words = frozen_words(options, reader, self.bert_path, self.data.train.captions.special)
        self.model = build_model(vars(options), reader, options.img_dim).to(self.device)
        if trained:
            pretrained.load(options.init_from, trained, self.model, options.img_dim)
        self.average = (
            WeightAverage(self.model, options.average_decay)
            if options.average_from is not None
            else None
        )
        if options.compile:
            casting.compile_for_training(self.model)
        self.objective = build_objective(options, words).to(self.device)
        self.optimizer = optim.build(
            self.model, self.objective, options.learning_rate, options.graph_lr_factor,
            options.bert_lr_factor, options.weight_decay,
        )  # fmt: skip
        pairs = TrainingPairs(
            self.data.train, options.seed, drop_regions=bool(options.size_augment),
            augment_words=bool(options.word_augment), views=options.views,
        )  # fmt: skip
        cores = max((os.cpu_count() or 1) // distributed.local_world_size(), 1)
        workers = min(options.workers, cores)  # more of them would wait for a core
        clusters = {"random": None, "neighbour": options.batch_clusters}[options.batch_sampling]
        self.loader = training_loader(pairs, options.batch_size, workers, clusters)

    def _find_bert(self, content, trained):
        """The BERT of a run that is resumed from `content`, or starts from the `Checkpoint`
        `trained`, or from neither."""
        kept = recorded = None
        if content:
            kept, recorded = content["bert"], content["options"].get("bert_path")
        elif trained:
            kept, recorded = trained.bert, trained.options.get("bert_path")
        return find_bert(self.options, kept, recorded)

    def _check_data(self, path, saved):
        """Compare data and BERT with those at the start of the run, `saved`. Raises InputError if
        they differ."""
        options = self.options
        lines = fingerprint.check_resumed(
            path,
            saved,
            self.fingerprint,
            self.data.train.folder,
            options.bert_path,
            options.allow_changed_data,
        )
        for line in lines:
            print_line(line)

    def _restore(self, path, content):
        """Restore what `save` wrote, in this folder or another. Changes no file."""
        checkpoint.check_progress(path, content, len(self.loader), self.options.num_epochs)
        average = self.average and content.get("average")
        checkpoint.restore(
            path, content, self.model, self.objective, self.optimizer,
            more=dict(average=average["model"]) if average else {},
        )  # fmt: skip
        if average:
            self.average.restore(average)
        position = content["position"]
        self.epoch, self.step_in_epoch = content["epoch"], position["step_in_epoch"]
        self.skipped.fill_(position["skipped"])
        self.step = content["step"]
        self.best_rsum = find_best_rsum(path, content, self.options.num_epochs, self.model)
        split = self.data.validation.split
        if not fingerprint.is_same(
            (position.get("data") or {}).get(split, {}), self.fingerprint[split]
        ):
            self.best_rsum = -1.0
            print_line(
                f"warning: the best score so far was measured on other {split} data; the next "
                "validated model becomes the best"
            )

    def _start(self, resumed_file, content):
        """Start or resume the run in its folders, and open its log. content: what was restored, or
        None."""
        options, position = self.options, content and content["position"]
        sizes = None
        if distributed.is_main_process():
            has_log = self.folders.start(
                resumed_file, find_tables(self), options.resume, options.overwrite
            )
            sizes = position["log_sizes"] if has_log else None
        self.log = (
            RunLog(options.logger_name, sizes) if distributed.is_main_process() else NullLog()
        )
        self.step_log = StepLog(
            self.log, options.log_step, position and position["step_log"],
            all_connected=not options.connection,
        )  # fmt: skip

    def save(self) -> None:
        """Save everything that is needed to resume the run bit for bit."""
        position = dict(
            step_in_epoch=self.step_in_epoch,
            skipped=int(self.skipped),
            log_sizes=self.log.sizes(),
            step_log=self.step_log.state(),
            data=self.fingerprint,
        )
        average = dict(average=self.average.state()) if self.average else {}
        self.write(self.last_file, self.epoch, position=position, **average)

    def write(self, path: Path, epoch: int, model: nn.Module | None = None, **more: Any) -> None:
        """Write a checkpoint file of the run. model: in place of the one that is trained; more:
        further arguments of `lib.model.checkpoint.save`."""
        with distributed.raise_on_all_ranks():
            if distributed.is_main_process():
                self.folders.models.claim(path.name)
                checkpoint.save(
                    path, model or self.model, self.objective, self.optimizer,
                    epoch=epoch, step=self.step,
                    best_rsum=self.best_rsum, options=vars(self.options),
                    vocabulary=self.vocabulary and self.vocabulary.words, reader=self.reader,
                    bert=self.kept_bert, extraction=self.extraction, **more,
                )  # fmt: skip
                if path == self.last_file:
                    self.folders.saved()
