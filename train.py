"""Train HREM:  python train.py --data_path data/ --dataset f30k --logger_name runs/f30k_test

Logs, curves and the best model go into the run folder; the best model's table on the test split ends the run.
"""

import os
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

import arguments
import graph_lib
from eval import load_split, summarise
from lib import bert, checkpoint, engine, metrics, optim, report
from lib.dataset import RetrievalDataset, TrainingPairs, batches, test_split, training_loader
from lib.errors import InputError, command_line
from lib.logs import RunLog, StepLog
from lib.model import build_model, load_model


class Data(NamedTuple):
    """The three splits of a run; test may be the same object as validation."""

    train: RetrievalDataset
    validation: RetrievalDataset
    test: RetrievalDataset


class Training:
    """One run: everything that is trained or counted, and the loop over epochs."""

    def __init__(self, options):
        self.options = options
        self.best_file = Path(options.model_name) / checkpoint.BEST
        self._keep_finished_run()
        self.device = engine.choose_device(options.device, options.gpu_id)
        self.data = open_data(options)
        options.img_dim = self.data.train.region_dim
        torch.manual_seed(options.seed)
        self.model = build_model(vars(options), bert.model(options.bert_path), options.img_dim).to(self.device)
        self.objective = build_objective(options).to(self.device)
        self.optimizer = optim.build(self.model, self.objective, options.learning_rate, options.graph_lr_factor)
        pairs = TrainingPairs(self.data.train, options.seed, drop_regions=bool(options.size_augment))
        workers = min(options.workers, os.cpu_count() or 1)  # more would only queue for the cores
        self.loader = training_loader(pairs, options.batch_size, workers, self.device.type == "cuda")
        self.step, self.best_rsum = 0, -1.0
        self.log = RunLog(options.logger_name)
        self.step_log = StepLog(self.log, options.log_step)
        self._announce()

    def _keep_finished_run(self):
        if self.best_file.exists() and not self.options.overwrite:
            raise InputError(
                f"{self.best_file}: the folder holds a trained model, expected an empty one; give another "
                "--logger_name, or --overwrite 1 to replace it"
            )

    def _announce(self):
        """Say once what runs where."""
        options = self.options
        Path(options.model_name).mkdir(parents=True, exist_ok=True)
        self.log.parameters(vars(options))
        for name, split in self.data._asdict().items():
            self.log.train(
                f"{name}: {split.split} split of {split.folder}, {split.num_images} images x "
                f"{split.regions.shape[1]} regions x {split.region_dim}, {split.num_captions} captions"
            )
        self.log.train(
            f"parameters: image encoder {count(self.model.image_encoder)}, text encoder "
            f"{count(self.model.text_encoder)}, instance graph {count(self.objective)} (training only)"
        )
        self.log.train(
            f"device {self.device} ({device_name(self.device)}), seed {options.seed}; {len(self.loader)} steps an "
            f"epoch, {options.num_epochs} epochs, graph from step {options.warmup} on; the best epoch by rsum on "
            f"{options.val_split} is kept in {self.best_file}"
        )

    def run(self):
        """All epochs, then the table of the best model on the test split."""
        for epoch in range(self.options.num_epochs):
            self._train_epoch(epoch)
            self._validate(epoch)
        self._report()

    def _train_epoch(self, epoch):
        options = self.options
        optim.set_rates(self.optimizer, epoch, options.lr_schedules, options.decay_rate)
        rate = self.optimizer.param_groups[0]["lr"]
        self.loader.sampler.epoch = epoch
        first = self.step

        def on_step(step, step_report, waited, seconds):
            self.step = step
            self.step_log.add(epoch, step - first, step, rate, step_report, waited, seconds)
            if options.val_step and step % options.val_step == 0 and step - first < len(self.loader):
                self._validate(epoch)

        bar = tqdm(batches(self.loader), f"epoch {epoch}", total=len(self.loader), leave=False, disable=None)
        engine.train_epoch(
            self.model, self.objective, self.optimizer, bar, step=self.step, seed=options.seed, warmup=options.warmup,
            hardest=options.max_violation or epoch >= options.vse_mean_warmup_epochs, grad_clip=options.grad_clip,
            precision=options.precision, device=self.device, on_step=on_step,
        )  # fmt: skip
        self.step_log.write(epoch, self.step - first, self.step, rate)

    def _validate(self, epoch):
        options = self.options
        similarities = engine.similarities(self.model, self.data.validation, self.device)
        scores = metrics.scores(metrics.ranks(similarities))
        is_best = scores.rsum > self.best_rsum
        self.log.evaluation(
            f"epoch {epoch} step {self.step} {options.val_split}: "
            f"image to text {row(scores.image_to_text)}; text to image {row(scores.text_to_image)}; "
            f"rsum {scores.rsum:.1f}" + (" (best so far)" if is_best else "")
        )
        values = dict(zip(("r1", "r5", "r10", "medr", "meanr"), scores.image_to_text))
        values |= dict(zip(("r1i", "r5i", "r10i", "medri", "meanri"), scores.text_to_image), rsum=scores.rsum)
        self.log.scalars(values, self.step)
        if is_best:
            self.best_rsum = scores.rsum
            checkpoint.save(
                self.best_file, self.model, self.objective, self.optimizer, epoch=epoch + 1, step=self.step,
                best_rsum=self.best_rsum, options=vars(options),
            )  # fmt: skip

    def _report(self):
        options, split = self.options, self.data.test.split
        best = checkpoint.load(self.best_file)
        model = load_model(self.best_file, best, options.bert_path, options.img_dim, self.device)
        similarities = engine.similarities(model, self.data.test, self.device)
        text, scores, facts = summarise(similarities, options.dataset, split, [best])
        self.log.evaluation("\n" + text)
        report.save(options.logger_name, split, text, scores, facts)
        if options.save_results:
            report.save_similarities(Path(options.logger_name) / f"results_{options.dataset}.npy", similarities)


def open_data(options):
    """The splits of a run, all opened before anything is trained. Raises InputError. Returns `Data`."""
    splits = {
        split: load_split(options.data_path, options.dataset, split, options.bert_path)
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
    """The program; argv: its arguments, or those of the process."""
    parser = arguments.training_parser()
    graph_lib.add_options(parser)
    Training(arguments.parse_training(parser, argv)).run()


if __name__ == "__main__":
    command_line(main)
