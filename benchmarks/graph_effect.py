"""What the instance graph does to a trained model: its gradient beside that of the base loss, its
losses, and the spread of its relevance.

python -m benchmarks.graph_effect runs/f30k_test/last.pth

Batches of random images, each with one of its captions, of the training and the validation split.
Dropout is off. Gradients are those of the encoders.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from lib.data.batches import TrainingPairs
from lib.model import checkpoint
from lib.model.network import find_bert, load_model
from lib.model.options import ModelOptions
from lib.model.splits import load_split
from lib.objective.options import ObjectiveOptions
from lib.system.distributed import print_line
from lib.system.errors import InputError, command_line
from lib.system.options import COUNT, Parser, from_saved

import graph_lib  # isort: skip

COLUMNS = (
    "base loss", "graph loss", "|gradient| base", "|gradient| graph", "cosine", "relevance spread",
)  # fmt: skip


def main(argv=None):
    """The program; argv: its arguments, or those of the process."""
    options = parser().parse_args(argv)
    model, objective, saved, trained, reader = open_run(options.last)
    lines = [f"| split | {' | '.join(COLUMNS)} |", f"|{'---|' * (1 + len(COLUMNS))}"]
    for split in ("train", saved["val_split"]):
        data = load_split(saved["data_path"], saved["dataset"], split, reader, trained.vocabulary)
        pairs = TrainingPairs(data, seed=0, drop_regions=False, augment_words=False)
        rows = [
            measure(model, objective, pairs, number, options.pairs)
            for number in range(options.batches)
        ]
        cells = [f"{np.mean(column):.4g} ± {np.std(column):.2g}" for column in zip(*rows)]
        lines.append(f"| {split} | {' | '.join(cells)} |")
    print_line("\n".join(lines))


def parser():
    """The options of this script."""
    found = Parser(prog="graph_effect", description=__doc__.split("\n\n")[0])
    found.add_argument("last", type=Path, help="last.pth of a run with the graph")
    found.add_argument("--pairs", type=COUNT, default=128, help="pairs in a batch")
    found.add_argument("--batches", type=COUNT, default=4, help="batches of each split")
    return found


def open_run(path):
    """Model and objective of a run, its options, its `Checkpoint` and its BERT."""
    content, trained = checkpoint.load_run(path), checkpoint.load(path)
    saved = argparse.Namespace(**content["options"])
    if saved.interaction == "none":
        raise InputError(
            f"{path}: the run has no graph (found --interaction none, expected fusion or "
            "standalone). Name a run with the graph"
        )
    reader = find_bert(trained, None)
    model = load_model(path, trained, reader, saved.img_dim, torch.device("cpu"))
    objective = graph_lib.Objective(
        from_saved(ModelOptions, vars(saved)), from_saved(ObjectiveOptions, vars(saved))
    )
    objective.load_state_dict(content["objective"])
    return model, objective.eval(), vars(saved), trained, reader


def measure(model, objective, pairs, number, size):
    """COLUMNS of one batch."""
    generator = np.random.default_rng(number)
    split = pairs.split
    images = generator.choice(split.num_images, min(size, split.num_images), replace=False)
    captions = np.array(
        [generator.choice(np.flatnonzero(split.caption_images == image)) for image in images]
    )
    batch = pairs[0, captions]
    torch.manual_seed(number)  # of the sampled negatives
    encoded = model(batch, least_pieces=objective.pieces_read)
    loss = objective(*encoded, batch.image_ids, use_graph=True, hardest=True)
    parameters = [each for each in model.parameters() if each.requires_grad]
    graph = loss.total - loss.terms["base"]
    base, others = (
        torch.cat([
            part.flatten()
            for part in torch.autograd.grad(
                term, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        ])
        for term in (loss.terms["base"], graph)
    )  # fmt: skip
    relations = objective.relations(*encoded)
    spreads = [block.relevance[block.connection > 0].std() for block in relations]
    return (
        loss.terms["base"].item(), loss.terms["graph"].item(), base.norm().item(),
        others.norm().item(), torch.cosine_similarity(base, others, dim=0).item(),
        torch.stack(spreads).mean().item(),
    )  # fmt: skip


if __name__ == "__main__":
    command_line(main)
