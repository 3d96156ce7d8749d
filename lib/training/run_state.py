"""The state of a run: everything that is trained or counted, built, saved and restored
(docs/method.md, section 8)."""

import os

import torch

from ..data import fingerprint
from ..data.batches import TrainingPairs, training_loader
from ..model import bert, checkpoint, pretrained, saved_bert
from ..model.network import build_model
from ..model.saved_bert import SavedBert
from ..system import devices, distributed
from ..system.distributed import print_line
from . import optim
from .logs import NullLog, RunLog, StepLog
from .reporting import find_tables, log_setup
from .run_parts import (
    build_objective,
    check_memory,
    choose_conventions,
    find_bert,
    open_data,
    read_embeddings,
    read_vocabulary,
)
from .run_start import check_resumed, find_best_rsum


class RunState:
    """Everything that is trained or counted in one run: built, saved, and restored.

    data: `Data`; vocabulary: of a text encoder that reads words, or None; model, objective,
    optimizer, loader; log, step_log: what it reports to; epoch, step_in_epoch, step: how far it is;
    skipped: steps in a row that were not finite, a scalar tensor; best_rsum: of its validations, -1
    before the first.
    """

    def __init__(self, options, folders):
        """options: of the command line; folders: the `RunFolders` of the run. Raises InputError."""
        with distributed.raise_on_all_ranks():
            self._open(options, folders)

    def _open(self, options, folders):
        """Open the data, build what is trained, and start the run or go on with it."""
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
        distributed.main_process_first(
            lambda: choose_conventions(options, content["options"] if content else {})
        )
        self.vocabulary = distributed.main_process_first(
            lambda: read_vocabulary(options, resumed_file, content, trained)
        )
        self.bert_path = (
            options.bert_path
            if self.vocabulary
            else distributed.main_process_first(lambda: self._find_bert(content, trained))
        )
        self.data = distributed.main_process_first(
            lambda: open_data(options, self.bert_path, self.vocabulary)
        )
        options.img_dim = self.data.train.region_dim
        if content:
            check_resumed(resumed_file, vars(options), content["options"])
        devices.set_determinism(bool(options.deterministic), self.device)
        torch.manual_seed(options.seed)
        reader = (
            read_embeddings(options, self.vocabulary)
            if self.vocabulary
            else bert.model(self.bert_path, pretrained=not isinstance(self.bert_path, SavedBert))
        )
        self.fingerprint = fingerprint.of_run(self.data, None if self.vocabulary else reader)
        self.reader = self.kept_bert = None
        if not self.vocabulary:
            if isinstance(self.bert_path, SavedBert):  # whose initial weights nobody knows
                saved = ((content or {}).get("position", {}).get("data") or {}).get("bert", {})
                self.fingerprint["bert"].pop("weights")
                self.fingerprint["bert"] |= {n: saved[n] for n in ("weights",) if n in saved}
            settings, tokeniser = (
                self.fingerprint["bert"]["settings"],
                self.data.train.tokeniser_digest,
            )
            self.reader = dict(settings=settings, tokeniser=tokeniser)
            self.kept_bert = saved_bert.keep(reader.config, bert.tokeniser(self.bert_path))
            if trained:
                fingerprint.check_reader(
                    options.init_from, trained.reader, self.bert_path, self.reader
                )
        if content:
            self._check_data(resumed_file, content["position"].get("data"))
        check_memory(options, reader, self.data.train.regions.shape, self.device)
        self.model = build_model(vars(options), reader, options.img_dim).to(self.device)
        if trained:
            pretrained.load(options.init_from, trained, self.model, options.img_dim)
        if options.compile:
            # what training calls; evaluation calls the encoders, as they are
            self.model.compile(dynamic=True)
        self.objective = build_objective(options).to(self.device)
        self.optimizer = optim.build(
            self.model, self.objective, options.learning_rate, options.graph_lr_factor
        )
        pairs = TrainingPairs(
            self.data.train, options.seed, drop_regions=bool(options.size_augment)
        )
        cores = max((os.cpu_count() or 1) // distributed.local_world_size(), 1)
        workers = min(options.workers, cores)  # more would only queue for them
        clusters = {"random": None, "neighbour": options.batch_clusters}[options.batch_sampling]
        self.loader = training_loader(pairs, options.batch_size, workers, clusters)
        self.skipped = torch.zeros((), dtype=torch.int32, device=self.device)
        self.epoch, self.step_in_epoch, self.step, self.best_rsum = 0, 0, 0, -1.0
        if content:
            self._restore(resumed_file, content)
        self._start(resumed_file, content)
        log_setup(self, resumed_file, trained)

    def _find_bert(self, content, trained):
        """`find_bert` of a run that goes on from `content`, or starts from `trained`, a
        `Checkpoint`, or from neither."""
        kept = recorded = None
        if content:
            kept, recorded = content["bert"], content["options"].get("bert_path")
        elif trained:
            kept, recorded = trained.bert, trained.options.get("bert_path")
        return find_bert(self.options, kept, recorded)

    def _check_data(self, path, saved):
        """Compare data and BERT with those that the run began with, `saved`.
        Raises InputError where they differ."""
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
        """Take over what `save` wrote of this run or another. Changes no file."""
        checkpoint.check_progress(path, content, len(self.loader), self.options.num_epochs)
        checkpoint.restore(path, content, self.model, self.objective, self.optimizer)
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
                f"warning: the best score so far is of other {split} "
                "data: the next model becomes the best"
            )

    def _start(self, resumed_file, content):
        """Start the run in its folders, or go on there, and open its log;
        content: what was restored, or None."""
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

    def save(self):
        """Write all that the run needs to go on, bit for bit, as if it had never stopped."""
        position = dict(
            step_in_epoch=self.step_in_epoch,
            skipped=int(self.skipped),
            log_sizes=self.log.sizes(),
            step_log=self.step_log.state(),
            data=self.fingerprint,
        )
        self.write(self.last_file, self.epoch, position=position)

    def write(self, path, epoch, **more):
        """Write a checkpoint file of the run; more: what else it holds, as
        `lib.model.checkpoint.save` takes it."""
        with distributed.raise_on_all_ranks():
            if distributed.is_main_process():
                self.folders.models.claim(path.name)
                checkpoint.save(
                    path, self.model, self.objective, self.optimizer, epoch=epoch, step=self.step,
                    best_rsum=self.best_rsum, options=vars(self.options),
                    vocabulary=self.vocabulary and self.vocabulary.words, reader=self.reader,
                    bert=self.kept_bert, **more,
                )  # fmt: skip
                if path == self.last_file:
                    self.folders.saved()
