"""What a run reports: first lines, validations, pictures, and the table at its end
(docs/method.md, section 9)."""

from pathlib import Path

import torch

import graph_lib

from ..evaluation import encoding, metrics, report
from ..evaluation.report import find_facts, save_results, summarise
from ..evaluation.result_names import ResultName
from ..model import bert, checkpoint, pretrained
from ..model.network import load_model
from ..system import distributed, images
from ..system.distributed import print_line
from .validations import markdown_of_validations, read_validations

MOST_DRAWN = 64  # pairs of the batch whose graph TensorBoard shows


def find_tables(state):
    """Names of the files that the report of this run writes into the folder of its logs."""
    if state.data.test is None:
        return []
    name = result_name(state)
    return [
        f"{name.table()}.md",
        report.METRICS,
        *[name.results()] * bool(state.options.save_results),
    ]


def result_name(state):
    """The `ResultName` of the test table of a run."""
    dataset, split = state.options.dataset, state.data.test.split
    return ResultName(dataset, dataset, split, test_split=split)


def log_setup(state, resumed_file, trained):
    """Say once what runs where; a run that goes on has said so in its log before.

    trained: the `Checkpoint` whose weights the run starts from, or None.
    """
    options = state.options
    graph = (
        "no instance graph"
        if options.interaction == "none"
        else f"graph from step {options.warmup} on"
    )
    state.log.parameters(vars(options))
    tell = print_line if resumed_file else state.log.train
    for name, split in state.data._asdict().items():
        if split is None:
            tell(
                f"{name}: no such split, so no test table is written; the best model is kept in "
                f"{state.best_file}"
            )
            continue
        tell(
            f"{name}: {split.split} split of {split.folder}, {split.num_images} images x "
            f"{split.regions.shape[1]} regions x {split.region_dim}, {split.num_captions} captions"
        )
    if state.vocabulary:
        tell(
            f"vocabulary: {len(state.vocabulary.words)} words that the training captions hold at "
            f"least {options.min_word_count} times"
        )
    if note := (state.vocabulary or bert.tokeniser(state.bert_path)).note:
        tell(note)
    tell(
        f"parameters: image encoder {count(state.model.image_encoder)}, text encoder "
        f"{count(state.model.text_encoder)}, instance graph {count(state.objective)} (training "
        "only)"
    )
    if trained:
        tell(pretrained.describe(options.init_from, trained, vars(options), state.vocabulary))
    if (size := distributed.world_size()) > 1:
        tell(f"{size} processes, {options.batch_size // size} pairs of a batch in each")
    tell(f"method {options.method}, batches {state.loader.sampler.describe()}")
    tell(
        f"device {state.device} ({device_name(state.device)}), seed {options.seed}; "
        f"{len(state.loader)} steps an epoch, {options.num_epochs} epochs, {graph}; the best "
        f"epoch by rsum on {options.val_split} is kept in {state.best_file}"
    )
    steps = len(state.loader) * options.num_epochs
    if options.interaction != "none" and options.warmup >= steps:
        tell(
            f"warning: --warmup {options.warmup} is not over within the {steps} steps of this "
            "run: the instance graph takes no part in it, what is trained is the base model; give "
            "a smaller one"
        )
    if resumed_file:
        print_line(
            f"going on from {resumed_file}: epoch {state.epoch}, step {state.step}, best rsum "
            f"{state.best_rsum:.1f}"
        )


def write_validation(state, scores, is_best):
    """Log the scores of a validation, and the points of their curves; is_best: so far."""
    state.log.evaluation(
        f"epoch {state.epoch} step {state.step} {state.options.val_split}: "
        f"image to text {row(scores.image_to_text)}; text to image {row(scores.text_to_image)}; "
        f"rsum {scores.rsum:.1f}" + (" (best so far)" if is_best else "")
    )
    values = dict(zip(("r1", "r5", "r10", "medr", "meanr"), scores.image_to_text))
    values |= dict(
        zip(("r1i", "r5i", "r10i", "medri", "meanri"), scores.text_to_image), rsum=scores.rsum
    )
    state.log.scalars(values, state.step)


def log_pictures(state, similarities):
    """What TensorBoard shows beside scalars: similarities of pairs; once it takes part,
    the graph of one batch."""
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


def write_table(state):
    """Write the table of the best model on the test split. Returns its scores by label;
    none without a test split."""
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
        text, scores = summarise(similarities, facts)
        state.log.evaluation("\n" + text)
        save_results(folder, name, (text, scores, facts), similarities, options.save_results)
        return scores

    return distributed.broadcast_from_main(written)


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
