"""Planted mistakes: each must make a test fail. `make mutants`,
or python tests/mutants.py [--list] [--only NAME ...]

The tree is copied to a temporary folder. There each mistake is planted by itself, and the tests
that could see it run up to the first that fails; before, they run without a mistake and must pass.
Exit status 1 where a mistake survives, or its text is no longer found exactly once.
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
# exit statuses of a process that ran tests; 0 and 1 are those of one that did not get so far
PASSED, FAILED = 10, 11
# a process for each mistake; what takes long is imported once
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch", "transformers", "pytest"])
LEFT_OUT = (
    ".git",
    ".venv",
    "__pycache__",
    ".pytest_cache",
    ".hypothesis",
    ".ruff_cache",
    ".mypy_cache",
    "*_precomp",
)


class Mutant(NamedTuple):
    """A mistake: the text `old` of a file, found in it exactly once, becomes `new`;
    tests: files that could see it."""

    file: str
    old: str
    new: str
    tests: str


WIRING, PARTS = "training/test_wiring.py", "training/test_wiring_parts.py"
KEPT = f"{WIRING}::test_the_first_of_the_best_validations_is_kept_and_reported"
SETTINGS = f"{WIRING}::test_every_step_has_the_settings_of_its_epoch"
OBJECTIVE = f"{WIRING}::test_the_options_reach_the_objective"
ORDER = f"{WIRING}::test_every_epoch_shows_every_pair_once_in_another_order"
DRAWN = f"{WIRING}::test_every_epoch_drops_other_regions_and_alters_other_words"
SEED = f"{WIRING}::test_the_seed_decides_all_that_is_random"
AUGMENT = f"{WIRING}::test_without_size_augment_all_regions_are_shown_and_words_still_altered"
LOG = f"{WIRING}::test_a_line_of_the_log_is_the_mean_of_its_steps_and_a_term_of_those_that_have_it"
AVERAGING = "lib/training/averaging.py"
BATCHES = "lib/data/batches.py"
DISTRIBUTED = "lib/system/distributed.py"
ENCODING = "lib/evaluation/encoding.py"
ENGINE = "lib/training/engine.py"
LOGS = "lib/training/logs.py"
LOOP = "lib/training/loop.py"
LOSSES = "lib/objective/losses.py"
METRICS = "lib/evaluation/metrics.py"
OPTIM = "lib/training/optim.py"
POOLING = "lib/model/pooling.py"
RELATION = "lib/objective/relation.py"
EVALUATE = "lib/results/evaluate.py"
FACTS = "lib/evaluation/facts.py"
RESULT_FOLDER = "lib/evaluation/result_folder.py"
TABLE = "lib/evaluation/table.py"
REPORTING = "lib/training/reporting.py"
RUN_STATE = "lib/training/run_state.py"
SAMPLING = "lib/data/sampling.py"
TEST_AVERAGING = "training/test_averaging.py"
TEST_BATCHES = "data/test_batches.py"
SCHEDULE = "lib/training/schedule.py"
SIMILARITY = "lib/evaluation/similarity.py"
TEST_DATASET = "data/test_dataset.py"
TEST_DISTRIBUTED = "system/test_distributed_steps.py"
TEST_GRAPH = "objective/test_graph.py"
TERMS = "objective/test_objective_options.py"
TEST_LOSSES = "objective/test_losses.py"
TEST_METRICS = "evaluation/test_metrics.py"
TEST_OPTIM = "training/test_optim.py"
TEST_POOLING = "model/test_pooling.py"
TEST_PROGRAMS = "programs/test_programs.py"
TEST_RELATION = "objective/test_relation.py"
TEST_RESULTS = "evaluation/test_results.py"
TEST_SAMPLING = "data/test_sampling.py"
MUTANTS = {
    # The run: lib/training/run_state.py, lib/training/loop.py, lib/training/run_parts.py,
    # lib/training/reporting.py
    "the last model is reported": Mutant(
        REPORTING, "best = checkpoint.load(state.best_file)",
        "best = checkpoint.load(state.last_file)", KEPT),
    "the weights reported are the last": Mutant(
        REPORTING, "similarities = encoding.similarities(model, state.data.test",
        "similarities = encoding.similarities(state.model, state.data.test", KEPT),
    "of equal validations the last is kept": Mutant(
        LOOP, "scores.rsum > state.best_rsum", "scores.rsum >= state.best_rsum", KEPT),
    "the best model is not kept": Mutant(LOOP, "state.best_rsum = scores.rsum", "pass", KEPT),
    "the best model counts an epoch too few": Mutant(
        LOOP, "state.epoch + (state.step > 0)", "state.epoch", KEPT),
    "validation reads the test split": Mutant(
        LOOP, "encoding.similarities(model, state.data.validation",
        "encoding.similarities(model, state.data.test", KEPT),
    "the sampling distance is left out": Mutant(
        "graph_lib.py", "options.longest_distance or LONGEST", "LONGEST", TERMS
    ),
    "the graph's dropout is left out": Mutant(
        "graph_lib.py", "            dropout=model.dropout,\n", "", OBJECTIVE
    ),
    "base_loss and gnn_loss are exchanged": Mutant(
        "graph_lib.py",
        "losses(options.base_loss, ", "losses(options.gnn_loss, ", TERMS),
    "the margin is left out": Mutant(
        "graph_lib.py", "positives, options.margin, negatives", "positives, 0.2, negatives", TERMS
    ),
    "the graph's layers are left out": Mutant(
        "graph_lib.py", "            layers=options.num_layers_enc,\n", "", TERMS
    ),
    "repeated images are always masked": Mutant(
        "graph_lib.py", "bool(options.mask_repeat)", "True", TERMS),
    "the graph always reads normalised embeddings": Mutant(
        "graph_lib.py", "if self.options.norm_input else", "if True else", TERMS),
    "hardest negatives an epoch late": Mutant(
        LOOP, "epoch >= options.vse_mean_warmup_epochs", "epoch > options.vse_mean_warmup_epochs",
        SETTINGS),
    "rates decay an epoch late": Mutant(
        LOOP, "schedule.factor(epoch, step)", "schedule.factor(epoch - 1, step)", SETTINGS),
    "the rates never decay": Mutant(
        LOOP, "schedule.factor(epoch, step)", "schedule.factor(0, step)", SETTINGS),
    "every epoch is epoch 0 to the loader": Mutant(
        LOOP, "state.loader.sampler.epoch, state.loader.sampler.first = epoch,",
        "state.loader.sampler.epoch, state.loader.sampler.first = 0,", ORDER),
    "first weights do not depend on the seed": Mutant(
        RUN_STATE, "torch.manual_seed(options.seed)", "torch.manual_seed(0)", SEED),
    "dropout does not depend on the seed": Mutant(
        LOOP, "step=state.step, seed=options.seed,", "step=state.step, seed=0,", SEED),
    "order and augmentation do not depend on the seed": Mutant(
        RUN_STATE, "self.data.train, options.seed, drop_regions=",
        "self.data.train, 0, drop_regions=", SEED),
    "--size_augment 0 also stops word alteration": Mutant(
        RUN_STATE, "drop_regions=bool(options.size_augment)",
        "drop_regions=bool(options.size_augment), augment_words=bool(options.size_augment)",
        AUGMENT),
    "regions are always dropped": Mutant(
        RUN_STATE, ", drop_regions=bool(options.size_augment)", "", AUGMENT
    ),
    "the clip is left at its default": Mutant(
        LOOP, "grad_clip=options.grad_clip,", "grad_clip=2.0,", SETTINGS
    ),
    "the warm-up starts anew": Mutant(
        LOOP, "warmup=options.warmup,", "warmup=options.warmup + 1,", SETTINGS
    ),
    "the graph's rate is left at its default": Mutant(
        RUN_STATE, "options.learning_rate, options.graph_lr_factor", "options.learning_rate",
        SETTINGS),
    "the precision is left at its default": Mutant(
        LOOP, "precision=options.precision,", 'precision="fp32",',
        f"{WIRING}::test_precision_and_hardest_negatives_reach_every_step"),
    # A step: lib/training/engine.py; an evaluation: lib/evaluation/encoding.py
    "running statistics that are not finite are taken": Mutant(
        ENGINE, "buffer.copy_(torch.where(is_finite, buffer, before))", "pass", PARTS),
    "captions that are NaN are evaluated": Mutant(
        ENCODING, "images.isfinite().all() and captions.isfinite().all()",
        "images.isfinite().all() and images.isfinite().all()", PARTS),
    "images that are NaN are evaluated": Mutant(
        ENCODING, "images.isfinite().all() and captions.isfinite().all()",
        "captions.isfinite().all() and captions.isfinite().all()", PARTS),
    "bf16 reaches relations and losses": Mutant(
        ENGINE, "    return objective(\n        images",
        "    with torch.autocast(device_type, torch.bfloat16, enabled=precision == \"bf16\"):\n"
        "     return objective(\n        images", PARTS),
    "every process drops the same units": Mutant(
        ENGINE, "torch.manual_seed(seed + 1 + distributed.rank())", "torch.manual_seed(seed + 1)",
        PARTS),
    "every process draws negatives of its own": Mutant(
        ENGINE, "        torch.manual_seed(seed)  #", "        pass  #", PARTS),
    "unnormalised embeddings are not gathered": Mutant(
        ENGINE, "unnormalised=distributed.gather(side.unnormalised),", "", PARTS),
    "the seed of a step does not depend on the step": Mutant(
        ENGINE, "SeedSequence([seed, step])", "SeedSequence([seed, 0])", SEED),
    "seeds of steps are added": Mutant(
        ENGINE, "SeedSequence([seed, step])", "SeedSequence([seed + step])", TEST_OPTIM),
    "training goes on in evaluation mode": Mutant(
        ENGINE, "        model.train()  # on_step may have evaluated both\n", "", TEST_OPTIM),
    "the gradient is not clipped": Mutant(
        ENGINE, "clip_grad_norm_(parameters, grad_clip)", "clip_grad_norm_(parameters, 1e9)",
        TEST_OPTIM),
    "the graph is asked for a step late": Mutant(
        ENGINE, "use_graph=step >= warmup", "use_graph=step > warmup", SETTINGS),
    "captions stay in order of length": Mutant(ENCODING, "[np.argsort(order)]", "", TEST_OPTIM),
    "skipped steps are never forgotten": Mutant(
        ENGINE, "(skipped + 1) * ~is_finite", "skipped + 1", PARTS),
    # Data: lib/data/batches.py, lib/data/sampling.py
    "regions and words are those of epoch 0": Mutant(
        BATCHES, "default_rng((self.seed, epoch, int(caption)))",
        "default_rng((self.seed, 0, int(caption)))", DRAWN),
    "regions and words of seed 1 are those of seed 0 an epoch later": Mutant(
        BATCHES, "default_rng((self.seed, epoch, int(caption)))",
        "default_rng((self.seed + epoch, int(caption)))", SEED),
    "regions and words do not depend on the seed": Mutant(
        BATCHES, "default_rng((self.seed, epoch, int(caption)))",
        "default_rng((epoch, int(caption)))", SEED),
    "words are never altered": Mutant(
        BATCHES, "generator if self.augment_words else None", "None", DRAWN
    ),
    "fewer regions are kept": Mutant(
        BATCHES, "REGION_KEEP_PROBABILITY = 0.8", "REGION_KEEP_PROBABILITY = 0.7", TEST_BATCHES),
    "an image may lose all regions": Mutant(
        BATCHES, "kept if len(kept) else generator.integers(num_regions, size=1)", "kept",
        TEST_BATCHES),
    "every epoch has the order of epoch 0": Mutant(
        SAMPLING, "order = np.random.default_rng((self.seed, self.epoch))",
        "order = np.random.default_rng((self.seed, 0))", ORDER),
    "the order does not depend on the seed": Mutant(
        SAMPLING, "order = np.random.default_rng((self.seed, self.epoch))",
        "order = np.random.default_rng((0, self.epoch))", SEED),
    "the order of seed 1 is that of seed 0 an epoch later": Mutant(
        SAMPLING, "order = np.random.default_rng((self.seed, self.epoch))",
        "order = np.random.default_rng(self.seed + self.epoch)", SEED),
    "neighbours do not depend on the epoch": Mutant(
        SAMPLING, "        generator = np.random.default_rng((self.seed, self.epoch))",
        "        generator = np.random.default_rng(self.seed)", TEST_SAMPLING),
    "means of regions count padding": Mutant(
        SAMPLING, "regions.sum(1) / lengths.unsqueeze(1)", "regions.mean(1)", PARTS),
    # The log: lib/training/logs.py
    "the log's line holds the last step": Mutant(
        LOGS, "return float(values.mean()) if len(values)",
        "return float(values[-1]) if len(values)", LOG),
    "the log averages steps that were not finite": Mutant(
        LOGS, "    values = values[is_finite]\n", "", PARTS),
    "graph terms are averaged over steps without the graph": Mutant(
        LOGS, "_mean(values, is_finite[has_term])",
        "_mean(values, is_finite[has_term]) * len(values) / count", LOG),
    "the log's line comes a step late": Mutant(
        LOGS, "len(self.reports) >= self.log_step", "len(self.reports) > self.log_step", LOG),
    # Several processes: lib/system/distributed.py
    "a restart reads the store of the processes before": Mutant(
        DISTRIBUTED, '== "1":\n', '== "0":\n', PARTS),
    "gathered rows lose the order of the batch": Mutant(
        DISTRIBUTED, "found.transpose(0, 1).flatten(0, 1)", "found.flatten(0, 1)",
        TEST_DISTRIBUTED),
    "the gradient of gathered rows is not scaled": Mutant(
        DISTRIBUTED, "gradient[shard()] * world_size()", "gradient[shard()]", TEST_DISTRIBUTED),
    # Tables: lib/results/evaluate.py, lib/evaluation/
    "the table says another split selected the epoch": Mutant(
        FACTS, 'one.options["val_split"] for one in found', '"dev" for one in found',
        TEST_PROGRAMS),
    "results on other data replace those of the usual": Mutant(
        RESULT_FOLDER, "isinstance(data, dict) and data.get(", "False and data.get(",
        TEST_RESULTS),
    "an ensemble is the first model": Mutant(
        EVALUATE, "    similarities = ensemble(models)\n    table =",
        "    similarities = models[0]\n    table =",
        TEST_PROGRAMS),
    "testall has no folds": Mutant(
        TABLE, 'if split == "testall" and', 'if split == "none" and',
        f"{WIRING}::test_the_table_is_that_of_the_reported_model"),
    "the median starts from 0": Mutant(
        METRICS, "float(np.floor(np.median(ranks_from_0)) + 1)",
        "float(np.floor(np.median(ranks_from_0)))",
        TEST_METRICS),
    "R@10 is R@9": Mutant(METRICS, "for k in (1, 5, 10)", "for k in (1, 5, 9)", TEST_METRICS),
    "of equal scores at the cut none is found": Mutant(
        SIMILARITY, "np.flatnonzero(~(keys > last))", "np.flatnonzero(keys < last)",
        "evaluation/test_similarity.py"),
    "an ensemble is a sum": Mutant(
        SIMILARITY, "dim=1) / len(models)", "dim=1)",
        "evaluation/test_similarity.py programs/test_programs.py"),
    # Losses and relations
    "the maximum is over all negatives": Mutant(
        LOSSES, "largest = log_weights.masked_fill(is_excluded, -torch.inf)",
        "largest = log_weights",
        TEST_LOSSES),
    "the hinge has no margin": Mutant(
        LOSSES, "(margin + rows - paired", "(rows - paired",
        TEST_LOSSES),
    "captions are never anchors": Mutant(
        LOSSES, "torch.stack([similarities, similarities.mT], dim=-3)",
        "torch.stack([similarities, similarities], dim=-3)",
        TEST_LOSSES),
    "the temperature has no limit": Mutant(
        LOSSES, "log_scale.clamp_(max=-math.log(SMALLEST_TEMPERATURE))", "pass",
        "objective/test_infonce.py"),
    "soft labels are not centred": Mutant(
        "lib/objective/auxiliary.py", "features - features.mean(0)", "features",
        "objective/test_auxiliary.py"),
    "a caption has the better view": Mutant(
        LOSSES, "similarities.amin(0), similarities.amax(0)",
        "similarities.amax(0), similarities.amax(0)", "objective/test_views.py"),
    "different features may correlate": Mutant(
        "lib/objective/auxiliary.py", "OFF_DIAGONAL * others", "0 * others",
        "objective/test_auxiliary.py"),
    "the connection is one too many": Mutant(
        RELATION, "max(int(closeness.size(1) * threshold), 1)",
        "int(closeness.size(1) * threshold) + 1",
        TEST_RELATION),
    "the two directions of relevance share no start": Mutant(
        RELATION, "copy.deepcopy(self.mlp_t2i)",
        "nn.Sequential(nn.Linear(topk, topk), nn.ReLU(), nn.Linear(topk, 1))", TEST_RELATION),
    "the regulariser reaches the embeddings": Mutant(
        RELATION, "image_embeddings.detach(), caption_embeddings.detach()",
        "image_embeddings, caption_embeddings", "objective/test_regulariser.py"),
    "relevance is not weighed": Mutant(
        "graph_lib.py", "bias = mask_weight * relation.relevance", "bias = relation.relevance",
        TEST_GRAPH),
    "a soft connection weighs nothing": Mutant(
        "graph_lib.py", "if relation.connection.is_floating_point():", "if False:", TEST_GRAPH),
    "the cross losses are one": Mutant(
        "graph_lib.py", "cross[0] + cross[1]", "cross[0]", TEST_GRAPH),
    # Rates: lib/training/optim.py
    "BERT learns at the full rate": Mutant(
        OPTIM, "lr=learning_rate * bert_lr_factor", "lr=learning_rate", SETTINGS
    ),
    "there is no weight decay": Mutant(
        OPTIM, "weight_decay=weight_decay", "weight_decay=0.0", TEST_OPTIM
    ),
    "a milestone counts from the epoch after": Mutant(
        SCHEDULE, "epoch >= each", "epoch > each", SETTINGS),
    "a cosine ends a step too late": Mutant(
        SCHEDULE, "self.num_steps - self.warmup", "self.num_steps + 1 - self.warmup", TEST_OPTIM),
    "the first step has no rate": Mutant(
        SCHEDULE, "(step + 1) / self.warmup", "step / self.warmup", TEST_OPTIM),
    "decays beside a cosine are not refused": Mutant(
        "arguments.py", "option_checks.check_decay(options, given=chosen)", "pass", TEST_OPTIM),
    # Attention pooling: lib/model/pooling.py
    "attention pooling is a softmax over features": Mutant(
        POOLING, "masked_fill(~is_real, -torch.inf).softmax(1)\n        return (weights * f",
        "masked_fill(~is_real, -torch.inf).softmax(2)\n        return (weights * f", TEST_POOLING),
    "attention pools the padding": Mutant(
        POOLING, "self.score(fragments).float().masked_fill(~is_real, -torch.inf)",
        "self.score(fragments).float()", TEST_POOLING),
    "attention pools all fragments in training": Mutant(
        POOLING, "self.dropout(fragments).masked_fill", "fragments.masked_fill", TEST_POOLING),
    # Averages: lib/training/averaging.py
    "a skipped step moves the average": Mutant(
        AVERAGING, ".clamp(min=least) * is_finite", ".clamp(min=least)", TEST_AVERAGING),
    "a skipped step is counted": Mutant(
        AVERAGING, "self.steps += is_finite", "self.steps += 1", TEST_AVERAGING),
    "the first steps of an average count as the later ones": Mutant(
        AVERAGING, "self.steps.clamp(min=1).reciprocal()", "0 * self.steps", TEST_AVERAGING),
    "a resumed run forgets its average": Mutant(
        RUN_STATE, "self.average.restore(average)", "pass", TEST_AVERAGING),
    "the average begins an epoch late": Mutant(
        LOOP, "epoch >= options.average_from", "epoch > options.average_from", TEST_AVERAGING),
    "the average is not what is validated": Mutant(
        LOOP, "self._validate_one(state.average.model,", "self._validate_one(state.model,",
        "training/test_run_state.py"),
}  # fmt: skip


def plant(folder, mutant):
    """Plant a mistake in the tree at `folder`. Returns the file and its text before.
    Raises ValueError."""
    path = Path(folder) / mutant.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise ValueError(
            f"{mutant.file}: found {mutant.old!r} {text.count(mutant.old)} times, expected once"
        )
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    return path, text


def is_seen(folder, mutant):
    """Whether a test of the tree at `folder` fails with the mistake in it.
    Raises ValueError where none can run."""
    path, text = plant(folder, mutant)
    try:
        status = status_of(folder, mutant.tests.split())
    finally:
        path.write_text(text, encoding="utf-8")
    if status not in (PASSED, FAILED):
        raise ValueError(
            f"pytest ended with status {status}, expected "
            f"{PASSED} or {FAILED}: do {mutant.tests} run?"
        )
    return status == FAILED


def status_of(folder, tests):
    """How tests of the tree at `folder` end, up to the first that fails: PASSED, FAILED,
    or that they cannot run."""
    process = PROCESSES.Process(target=run_tests, args=(folder, tests))
    process.start()
    process.join()
    return process.exitcode


def run_tests(folder, tests):
    """Run tests of the tree at `folder` up to the first that fails,
    and exit with pytest's status and PASSED."""
    os.chdir(folder)
    sys.path[:] = [
        path
        for path in sys.path
        if not Path(path).is_relative_to(ROOT / "tests") and Path(path) != ROOT
    ]
    sys.modules.pop("mutants", None)
    # two files of one size and second would be taken for one another
    sys.dont_write_bytecode = True
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        status = pytest.main(
            ["-x", "-p", "no:cacheprovider", "--tb=no", *(f"tests/{name}" for name in tests)]
        )
    sys.exit(PASSED + int(status))


def main(argv=None):
    """The command. Returns its exit status."""
    parser = argparse.ArgumentParser(
        description="Plant mistakes and see whether the tests find them."
    )
    parser.add_argument("--list", action="store_true", help="print the names of the mistakes")
    parser.add_argument(
        "--only", nargs="+", default=list(MUTANTS), metavar="NAME", help="these mistakes alone"
    )
    options = parser.parse_args(argv)
    if unknown := set(options.only) - MUTANTS.keys():
        parser.error(f"no such mistake: {', '.join(sorted(unknown))}; --list prints them")
    if options.list:
        print("\n".join(MUTANTS))
        return 0
    missed = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = shutil.copytree(
            ROOT, Path(temporary) / "tree", ignore=shutil.ignore_patterns(*LEFT_OUT)
        )
        tests = sorted({test for name in options.only for test in MUTANTS[name].tests.split()})
        if (status := status_of(folder, tests)) != PASSED:
            print(
                f"pytest ends with status {status}, expected {PASSED}, without any mistake: "
                f"{' '.join(tests)}"
            )
            return 1
        for name in options.only:
            started, why = time.monotonic(), ""
            try:
                result = "seen" if is_seen(folder, MUTANTS[name]) else "SURVIVED"
            except ValueError as error:
                result, why = "NOT PLANTED", f": {error}"
            print(
                f"{result}: {name} ({MUTANTS[name].file}, {time.monotonic() - started:.0f} s){why}",
                flush=True,
            )
            missed += [name] * (result != "seen")
    print(
        f"{len(options.only) - len(missed)} of {len(options.only)} seen"
        + "".join(f"\n  {name}" for name in missed)
    )
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
