"""Planted mistakes: each must make a test fail. `make mutants`, or python tests/mutants.py [--list] [--only NAME ...]

The tree is copied to a temporary folder. There each mistake is planted by itself, and the tests that could see it run
up to the first that fails; before, they run without a mistake and must pass. Exit status 1 where a mistake survives,
or its text is no longer found exactly once.
"""

import argparse
import contextlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PASSED, FAILED = 10, 11  # exit statuses of a process that ran tests; 0 and 1 are those of one that did not get so far
PROCESSES = multiprocessing.get_context("forkserver")  # a process for each mistake; what takes long is imported once
PROCESSES.set_forkserver_preload(["torch", "transformers", "pytest"])
LEFT_OUT = ".git", ".venv", "__pycache__", ".pytest_cache", ".hypothesis", ".ruff_cache", "*_precomp"


class Mutant(NamedTuple):
    """A mistake: the text `old` of a file, found in it exactly once, becomes `new`; tests: files that could see it."""

    file: str
    old: str
    new: str
    tests: str


WIRING, PARTS = "test_wiring.py", "test_wiring_parts.py"
KEPT = f"{WIRING}::test_the_first_of_the_best_validations_is_kept_and_reported"
SETTINGS = f"{WIRING}::test_every_step_has_the_settings_of_its_epoch"
OBJECTIVE = f"{WIRING}::test_the_options_reach_the_objective"
ORDER = f"{WIRING}::test_every_epoch_shows_every_pair_once_in_another_order"
DRAWN = f"{WIRING}::test_every_epoch_drops_other_regions_and_alters_other_words"
SEED = f"{WIRING}::test_the_seed_decides_all_that_is_random"
AUGMENT = f"{WIRING}::test_without_size_augment_all_regions_are_shown_and_words_still_altered"
LOG = f"{WIRING}::test_a_line_of_the_log_is_the_mean_of_its_steps_and_a_term_of_those_that_have_it"
MUTANTS = {
    # The run: train.py
    "the last model is reported": Mutant(
        "train.py", "best = checkpoint.load(self.best_file)", "best = checkpoint.load(self.last_file)", KEPT),
    "the weights reported are the last": Mutant(
        "train.py", "similarities = engine.similarities(model, self.data.test",
        "similarities = engine.similarities(self.model, self.data.test", KEPT),
    "of equal validations the last is kept": Mutant(
        "train.py", "scores.rsum > self.best_rsum", "scores.rsum >= self.best_rsum", KEPT),
    "the best model is not kept": Mutant("train.py", "self.best_rsum = scores.rsum", "pass", KEPT),
    "the best model counts an epoch too few": Mutant(
        "train.py", "self.epoch + (self.step > 0))", "self.epoch)", KEPT),
    "validation reads the test split": Mutant(
        "train.py", "engine.similarities(self.model, self.data.validation",
        "engine.similarities(self.model, self.data.test", KEPT),
    "the sampling distance is left out": Mutant("train.py", "        longest_distance=", "        # ", OBJECTIVE),
    "the graph's dropout is left out": Mutant("train.py", "        dropout=options.dropout,\n", "", OBJECTIVE),
    "base_loss and gnn_loss are exchanged": Mutant(
        "train.py", "        base_loss=options.base_loss,\n        gnn_loss=options.gnn_loss,\n",
        "        base_loss=options.gnn_loss,\n        gnn_loss=options.base_loss,\n", OBJECTIVE),
    "the margin is left out": Mutant("train.py", "        margin=options.margin,\n", "", OBJECTIVE),
    "the graph's layers are left out": Mutant("train.py", "        layers=options.num_layers_enc,\n", "", OBJECTIVE),
    "repeated images are always masked": Mutant(
        "train.py", "        mask_repeat=bool(options.mask_repeat),\n", "", OBJECTIVE),
    "the graph always reads normalised embeddings": Mutant(
        "train.py", "        norm_input=bool(options.norm_input),\n", "", OBJECTIVE),
    "hardest negatives an epoch late": Mutant(
        "train.py", "epoch >= options.vse_mean_warmup_epochs", "epoch > options.vse_mean_warmup_epochs", SETTINGS),
    "rates decay an epoch late": Mutant(
        "train.py", "optim.set_rates(self.optimizer, epoch,", "optim.set_rates(self.optimizer, epoch - 1,", SETTINGS),
    "the rates never decay": Mutant(
        "train.py", "        optim.set_rates(self.optimizer, epoch,", "        (epoch,", SETTINGS),
    "every epoch is epoch 0 to the loader": Mutant(
        "train.py", "self.loader.sampler.epoch, self.loader.sampler.first = epoch,",
        "self.loader.sampler.epoch, self.loader.sampler.first = 0,", ORDER),
    "first weights do not depend on the seed": Mutant(
        "train.py", "torch.manual_seed(options.seed)", "torch.manual_seed(0)", SEED),
    "dropout does not depend on the seed": Mutant(
        "train.py", "step=self.step, seed=options.seed,", "step=self.step, seed=0,", SEED),
    "order and augmentation do not depend on the seed": Mutant(
        "train.py", "TrainingPairs(self.data.train, options.seed,", "TrainingPairs(self.data.train, 0,", SEED),
    "--size_augment 0 also stops word alteration": Mutant(
        "train.py", "drop_regions=bool(options.size_augment)",
        "drop_regions=bool(options.size_augment), alter_words=bool(options.size_augment)", AUGMENT),
    "regions are always dropped": Mutant("train.py", ", drop_regions=bool(options.size_augment)", "", AUGMENT),
    "the clip is left at its default": Mutant("train.py", "grad_clip=options.grad_clip,", "grad_clip=2.0,", SETTINGS),
    "the warm-up starts anew": Mutant("train.py", "warmup=options.warmup,", "warmup=options.warmup + 1,", SETTINGS),
    "the graph's rate is left at its default": Mutant(
        "train.py", "options.learning_rate, options.graph_lr_factor)", "options.learning_rate)", SETTINGS),
    "the precision is left at its default": Mutant(
        "train.py", "precision=options.precision,", 'precision="fp32",',
        f"{WIRING}::test_precision_and_hardest_negatives_reach_every_step"),
    # A step and an evaluation: lib/engine.py
    "running statistics that are not finite are taken": Mutant(
        "lib/engine.py", "buffer.copy_(torch.where(is_finite, buffer, before))", "pass", PARTS),
    "captions that are NaN are evaluated": Mutant(
        "lib/engine.py", "images.isfinite().all() and captions.isfinite().all()",
        "images.isfinite().all() and images.isfinite().all()", PARTS),
    "images that are NaN are evaluated": Mutant(
        "lib/engine.py", "images.isfinite().all() and captions.isfinite().all()",
        "captions.isfinite().all() and captions.isfinite().all()", PARTS),
    "bf16 reaches relations and losses": Mutant(
        "lib/engine.py", "    return objective(images, captions, batch.image_ids,",
        "    with torch.autocast(device_type, torch.bfloat16, enabled=precision == \"bf16\"):\n"
        "        return objective(images, captions, batch.image_ids,", PARTS),
    "every process drops the same units": Mutant(
        "lib/engine.py", "torch.manual_seed(seed + 1 + distributed.rank())", "torch.manual_seed(seed + 1)", PARTS),
    "every process draws negatives of its own": Mutant(
        "lib/engine.py", "        torch.manual_seed(seed)  #", "        # ", PARTS),
    "unnormalised embeddings are not gathered": Mutant(
        "lib/engine.py", ", unnormalised=distributed.gather(side.unnormalised)", "", PARTS),
    "the seed of a step does not depend on the step": Mutant(
        "lib/engine.py", "SeedSequence([seed, step])", "SeedSequence([seed, 0])", SEED),
    "seeds of steps are added": Mutant(
        "lib/engine.py", "SeedSequence([seed, step])", "SeedSequence([seed + step])", "test_optim.py"),
    "training goes on in evaluation mode": Mutant(
        "lib/engine.py", "        model.train()  # on_step may have evaluated both\n", "", "test_optim.py"),
    "the gradient is not clipped": Mutant(
        "lib/engine.py", "clip_grad_norm_(parameters, grad_clip)", "clip_grad_norm_(parameters, 1e9)", "test_optim.py"),
    "the graph is asked for a step late": Mutant(
        "lib/engine.py", "use_graph=step >= warmup", "use_graph=step > warmup", SETTINGS),
    "captions stay in order of length": Mutant("lib/engine.py", "[np.argsort(order)]", "", "test_optim.py"),
    "skipped steps are never forgotten": Mutant(
        "lib/engine.py", "(skipped + 1) * ~is_finite", "skipped + 1", PARTS),
    # Data: lib/dataset.py, lib/sampling.py
    "regions and words are those of epoch 0": Mutant(
        "lib/dataset.py", "default_rng((self.seed, epoch, int(caption)))",
        "default_rng((self.seed, 0, int(caption)))", DRAWN),
    "regions and words of seed 1 are those of seed 0 an epoch later": Mutant(
        "lib/dataset.py", "default_rng((self.seed, epoch, int(caption)))",
        "default_rng((self.seed + epoch, int(caption)))", SEED),
    "regions and words do not depend on the seed": Mutant(
        "lib/dataset.py", "default_rng((self.seed, epoch, int(caption)))",
        "default_rng((epoch, int(caption)))", SEED),
    "words are never altered": Mutant("lib/dataset.py", "generator if self.alter_words else None", "None", DRAWN),
    "fewer regions are kept": Mutant("lib/dataset.py", "REGION_KEPT = 0.8", "REGION_KEPT = 0.7", "test_dataset.py"),
    "an image may lose all regions": Mutant(
        "lib/dataset.py", "kept if len(kept) else generator.integers(num_regions, size=1)", "kept", "test_dataset.py"),
    "every epoch has the order of epoch 0": Mutant(
        "lib/sampling.py", "order = np.random.default_rng((self.seed, self.epoch))",
        "order = np.random.default_rng((self.seed, 0))", ORDER),
    "the order does not depend on the seed": Mutant(
        "lib/sampling.py", "order = np.random.default_rng((self.seed, self.epoch))",
        "order = np.random.default_rng((0, self.epoch))", SEED),
    "the order of seed 1 is that of seed 0 an epoch later": Mutant(
        "lib/sampling.py", "order = np.random.default_rng((self.seed, self.epoch))",
        "order = np.random.default_rng(self.seed + self.epoch)", SEED),
    "neighbours do not depend on the epoch": Mutant(
        "lib/sampling.py", "        generator = np.random.default_rng((self.seed, self.epoch))",
        "        generator = np.random.default_rng(self.seed)", "test_sampling.py"),
    "means of regions count padding": Mutant(
        "lib/sampling.py", "regions.sum(1) / lengths.unsqueeze(1)", "regions.mean(1)", PARTS),
    # The log: lib/logs.py
    "the log's line holds the last step": Mutant(
        "lib/logs.py", "return float(values.mean()) if len(values)", "return float(values[-1]) if len(values)", LOG),
    "the log averages steps that were not finite": Mutant(
        "lib/logs.py", "    values = values[is_finite]\n", "", PARTS),
    "graph terms are averaged over steps without the graph": Mutant(
        "lib/logs.py", "_mean(values, is_finite[has_term])",
        "_mean(values, is_finite[has_term]) * len(values) / count", LOG),
    "the log's line comes a step late": Mutant(
        "lib/logs.py", "len(self.reports) >= self.log_step", "len(self.reports) > self.log_step", LOG),
    # Several processes: lib/distributed.py
    "a restart reads the store of the processes before": Mutant(
        "lib/distributed.py", '== "1":\n', '== "0":\n', PARTS),
    "gathered rows lose the order of the batch": Mutant(
        "lib/distributed.py", "found.transpose(0, 1).flatten(0, 1)", "found.flatten(0, 1)", "test_distributed.py"),
    "the gradient of gathered rows is not scaled": Mutant(
        "lib/distributed.py", "gradient[share()] * size()", "gradient[share()]", "test_distributed.py"),
    # Tables: eval.py, lib/report.py, lib/metrics.py
    "the table says another split selected the epoch": Mutant(
        "eval.py", 'one.options["val_split"] for one in found', '"dev" for one in found', "test_programs.py"),
    "results on other data replace those of the usual": Mutant(
        "lib/report.py", "    is_other_data = isinstance(data, dict) and", "    is_other_data = False and",
        "test_results.py"),
    "an ensemble is the first model": Mutant(
        "eval.py", "    similarities = metrics.ensemble(models)\n    text,", "    similarities = models[0]\n    text,",
        "test_programs.py"),
    "testall has no folds": Mutant(
        "lib/report.py", 'if split == "testall" and', 'if split == "none" and',
        f"{WIRING}::test_the_table_is_that_of_the_reported_model"),
    "the median starts from 0": Mutant(
        "lib/metrics.py", "float(np.floor(np.median(ranks_from_0)) + 1)", "float(np.floor(np.median(ranks_from_0)))",
        "test_metrics.py"),
    "R@10 is R@9": Mutant("lib/metrics.py", "for k in (1, 5, 10)", "for k in (1, 5, 9)", "test_metrics.py"),
    "an ensemble is a sum": Mutant(
        "lib/metrics.py", "dim=1) / len(models)", "dim=1)", "test_metrics.py test_programs.py"),
    # Losses and relations
    "the maximum is over all negatives": Mutant(
        "lib/losses.py", "largest = log_weights.masked_fill(~is_admissible, -torch.inf)", "largest = log_weights",
        "test_losses.py"),
    "the hinge has no margin": Mutant(
        "lib/losses.py", "(margin + similarities - paired).clamp", "(similarities - paired).clamp", "test_losses.py"),
    "captions are never anchors": Mutant(
        "lib/losses.py", "directions = (similarities, similarities.T)", "directions = (similarities,)",
        "test_losses.py"),
    "the temperature has no limit": Mutant(
        "lib/losses.py", "self.log_scale.clamp_(max=-math.log(SMALLEST_TEMPERATURE))", "pass", "test_losses.py"),
    "the connection is one too many": Mutant(
        "lib/relation.py", "max(int(closeness.size(1) * threshold), 1)", "int(closeness.size(1) * threshold) + 1",
        "test_relation.py"),
    "the two directions of relevance share no start": Mutant(
        "lib/relation.py", "copy.deepcopy(self.mlp_t2i)",
        "nn.Sequential(nn.Linear(topk, topk), nn.ReLU(), nn.Linear(topk, 1))", "test_relation.py"),
    "the regulariser reaches the embeddings": Mutant(
        "lib/relation.py", "image_embeddings.detach(), caption_embeddings.detach()",
        "image_embeddings, caption_embeddings", "test_relation.py"),
    "relevance is not weighed": Mutant(
        "graph_lib.py", "(mask_weight * relation.relevance)", "(relation.relevance)", "test_graph.py"),
    "the cross losses are one": Mutant(
        "graph_lib.py", " + loss(self.gnn_loss, enhanced_u, w)", "", "test_graph.py"),
    # Rates: lib/optim.py
    "BERT learns at the full rate": Mutant("lib/optim.py", "BERT_RATE = 0.1", "BERT_RATE = 1.0", SETTINGS),
    "there is no weight decay": Mutant("lib/optim.py", "WEIGHT_DECAY = 1e-4", "WEIGHT_DECAY = 0.0", "test_optim.py"),
    "a milestone counts from the epoch after": Mutant(
        "lib/optim.py", "epoch >= milestone", "epoch > milestone", SETTINGS),
}  # fmt: skip


def plant(folder, mutant):
    """Plant a mistake in the tree at `folder`. Returns the file and its text before. Raises ValueError."""
    path = Path(folder) / mutant.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.file}: found {mutant.old!r} {text.count(mutant.old)} times, expected once")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    return path, text


def is_seen(folder, mutant):
    """Whether a test of the tree at `folder` fails with the mistake in it. Raises ValueError where none can run."""
    path, text = plant(folder, mutant)
    try:
        status = status_of(folder, mutant.tests.split())
    finally:
        path.write_text(text, encoding="utf-8")
    if status not in (PASSED, FAILED):
        raise ValueError(f"pytest ended with status {status}, expected {PASSED} or {FAILED}: do {mutant.tests} run?")
    return status == FAILED


def status_of(folder, tests):
    """How tests of the tree at `folder` end, up to the first that fails: PASSED, FAILED, or that they cannot run."""
    process = PROCESSES.Process(target=run_tests, args=(folder, tests))
    process.start()
    process.join()
    return process.exitcode


def run_tests(folder, tests):
    """Run tests of the tree at `folder` up to the first that fails, and exit with pytest's status and PASSED."""
    os.chdir(folder)
    sys.path[:] = [path for path in sys.path if not Path(path).is_relative_to(ROOT / "tests") and Path(path) != ROOT]
    sys.modules.pop("mutants", None)
    sys.dont_write_bytecode = True  # two files of one size and second would be taken for one another
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        status = pytest.main(["-x", "-p", "no:cacheprovider", "--tb=no", *(f"tests/{name}" for name in tests)])
    sys.exit(PASSED + int(status))


def main(argv=None):
    """The command. Returns its exit status."""
    parser = argparse.ArgumentParser(description="Plant mistakes and see whether the tests find them.")
    parser.add_argument("--list", action="store_true", help="print the names of the mistakes")
    parser.add_argument("--only", nargs="+", default=list(MUTANTS), metavar="NAME", help="these mistakes alone")
    options = parser.parse_args(argv)
    if unknown := set(options.only) - MUTANTS.keys():
        parser.error(f"no such mistake: {', '.join(sorted(unknown))}; --list prints them")
    if options.list:
        print("\n".join(MUTANTS))
        return 0
    missed = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = shutil.copytree(ROOT, Path(temporary) / "tree", ignore=shutil.ignore_patterns(*LEFT_OUT))
        tests = sorted({test for name in options.only for test in MUTANTS[name].tests.split()})
        if (status := status_of(folder, tests)) != PASSED:
            print(f"pytest ends with status {status}, expected {PASSED}, without any mistake: {' '.join(tests)}")
            return 1
        for name in options.only:
            started, why = time.monotonic(), ""
            try:
                result = "seen" if is_seen(folder, MUTANTS[name]) else "SURVIVED"
            except ValueError as error:
                result, why = "NOT PLANTED", f": {error}"
            print(f"{result}: {name} ({MUTANTS[name].file}, {time.monotonic() - started:.0f} s){why}", flush=True)
            missed += [name] * (result != "seen")
    print(f"{len(options.only) - len(missed)} of {len(options.only)} seen" + "".join(f"\n  {name}" for name in missed))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
