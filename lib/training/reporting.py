"""What a run reports: first lines, validations, pictures, and the table at its end
(docs/method.md, section 9)."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

import graph_lib

from ..evaluation import encoding, metrics
from ..evaluation.facts import find_facts
from ..evaluation.report import save_results
from ..evaluation.result_folder import METRICS
from ..evaluation.result_names import ResultName
from ..evaluation.similarity import Scored
from ..evaluation.table import summarise
from ..model import bert, checkpoint, pretrained
from ..model.checkpoint import Checkpoint
from ..model.network import load_model
from ..system import distributed, images
from ..system.distributed import print_line
from .validations import AVERAGED, markdown_of_validations, read_validations

State = Any  # lib.training.run_state.RunState, which imports this module
MOST_DRAWN = 64  # pairs of the batch whose graph TensorBoard shows


def find_tables(state: State) -> list[str]:
    """Names of the files that the report of this run writes into the folder of its logs."""
    if state.data.test is None:
        return []
    name = result_name(state)
    return [
        f"{name.table()}.md",
        METRICS,
        *[name.results()] * bool(state.options.save_results),
    ]


def result_name(state: State) -> ResultName:
    """The name of the test table of a run."""
    dataset, split = state.options.dataset, state.data.test.split
    return ResultName(dataset, dataset, split, test_split=split)


def log_setup(state: State, resumed_file: Path | None, trained: Checkpoint | None) -> None:
    """Log once what is trained, on which data and device. A resumed run prints it only.

    trained: the checkpoint whose weights the run starts from, or None.
    """
    state.log.parameters(vars(state.options))
    for line in [*_describe_data(state), *_describe_training(state, trained)]:
        (print_line if resumed_file else state.log.train)(line)
    if resumed_file:
        print_line(
            f"resuming from {resumed_file}: epoch {state.epoch}, step {state.step}, best rsum "
            f"{state.best_rsum:.1f}"
        )


def _describe_data(state):
    """Lines of the log: the splits and what reads the captions."""
    for name, split in state.data._asdict().items():
        if split is None:
            yield (
                f"{name}: no such split, so no test table is written; the best model is kept in "
                f"{state.best_file}"
            )
            continue
        yield (
            f"{name}: {split.split} split of {split.folder}, {split.num_images} images x "
            f"{split.regions.shape[1]} regions x {split.region_dim}, {split.num_captions} captions"
        )
    if state.vocabulary:
        yield (
            f"vocabulary: {len(state.vocabulary.words)} words that occur at least "
            f"{state.options.min_word_count} times in the training captions"
        )
    if note := (state.vocabulary or bert.tokeniser(state.bert_path)).note:
        yield note


def _describe_training(state, trained):
    """Lines of the log: model, processes, batches, device and schedule."""
    options = state.options
    has_graph = options.interaction != "none"
    yield (
        f"parameters: image encoder {count(state.model.image_encoder)}, text encoder "
        f"{count(state.model.text_encoder)}, instance graph {count(state.objective)} (training "
        "only)"
    )
    if trained:
        yield pretrained.describe(options.init_from, trained, vars(options), state.vocabulary)
    if (size := distributed.world_size()) > 1:
        yield f"{size} processes, {options.batch_size // size} pairs of a batch in each"
    yield f"method {options.method}, batches {state.loader.sampler.describe()}"
    graph = f"graph from step {options.warmup} on" if has_graph else "no instance graph"
    yield (
        f"device {state.device} ({device_name(state.device)}), seed {options.seed}; "
        f"{len(state.loader)} steps an epoch, {options.num_epochs} epochs, {graph}; the best "
        f"epoch by rsum on {options.val_split} is kept in {state.best_file}"
    )
    steps = len(state.loader) * options.num_epochs
    if has_graph and options.warmup >= steps:
        yield (
            f"warning: --warmup {options.warmup} is not over within the {steps} steps of this "
            "run, so the instance graph is never used, and only the base model is trained. Give "
            "a smaller --warmup"
        )


def write_validation(
    state: State, scores: metrics.Scores, is_best: bool, is_average: bool = False
) -> None:
    """Log the scores of a validation, and the points of their curves. is_best: the best so far;
    is_average: they are of the averaged weights."""
    state.log.evaluation(
        f"epoch {state.epoch} step {state.step} {state.options.val_split}: "
        + AVERAGED * is_average
        + f"image to text {row(scores.image_to_text)}; text to image {row(scores.text_to_image)}; "
        f"rsum {scores.rsum:.1f}" + (" (best so far)" if is_best else "")
    )
    values = dict(zip(("r1", "r5", "r10", "medr", "meanr"), scores.image_to_text))
    values |= dict(
        zip(("r1i", "r5i", "r10i", "medri", "meanri"), scores.text_to_image), rsum=scores.rsum
    )
    prefix = "average/" * is_average
    state.log.scalars({prefix + name: value for name, value in values.items()}, state.step)


def log_pictures(state: State, similarities: Scored) -> None:
    """Log TensorBoard pictures: the similarities of pairs and, after the warm-up, the graph of one
    batch."""
    options = state.options
    pairs = metrics.pair_similarities(similarities)
    state.log.histograms(
        {f"similarity/{name}": values for name, values in pairs._asdict().items()}, state.step
    )
    if state.step >= options.warmup and options.interaction != "none":
        num_pairs = min(options.batch_size, MOST_DRAWN)
        with distributed.single_process():
            found = graph_lib.relation_matrices(
                state.model, state.objective, state.data.validation, num_pairs, state.device
            )
        connection = (255 * found.connection.float()).round().byte().numpy()[..., None]
        relevance = found.relevance.numpy()
        state.log.images(
            {"graph/connection": connection, "graph/relevance": images.to_grey(relevance)},
            state.step,
        )
        ends = {
            "graph/relevance_lowest": relevance.min(),
            "graph/relevance_highest": relevance.max(),
        }
        state.log.scalars(ends, state.step)


def write_table(state: State) -> dict[str, metrics.Scores]:
    """Write the table of the best model on the test split. Returns its scores by label; empty
    without a test split."""
    options = state.options
    validations = read_validations(options.logger_name)
    if validations:
        title = f"{options.dataset}, split {options.val_split}: {len(validations)} validations"
        state.log.evaluation(
            f"\n{title}; * marks the best by rsum\n\n{markdown_of_validations(validations)}"
        )
    if state.data.test is None:
        state.log.evaluation(
            f"\nno test split, so no test table; the best model is in {state.best_file}"
        )
        return {}
    best = checkpoint.load(state.best_file)
    model = load_model(state.best_file, best, state.bert_path, options.img_dim, state.device)
    similarities = encoding.similarities(model, state.data.test, state.device)

    def written():
        folder, name = Path(options.logger_name), result_name(state)
        facts = find_facts(options.dataset, state.data.test, [(state.best_file, best)], folder)
        table = summarise(similarities, facts)
        state.log.evaluation("\n" + table.text)
        save_results(folder, name, table, similarities, options.save_results)
        return table.scores

    return distributed.broadcast_from_main(written)


def count(module: nn.Module) -> str:
    """The number of parameters of a module, in millions."""
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.2f} M"


def device_name(device: torch.device) -> str:
    """The device's name for the log: of the GPU, or the number of CPU threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads"


def row(recalls: metrics.Recalls) -> str:
    """One direction of a table on one line."""
    r1, r5, r10, median, mean = recalls
    return f"R@1 {r1:.1f} R@5 {r5:.1f} R@10 {r10:.1f} median {median:.0f} mean {mean:.1f}"
