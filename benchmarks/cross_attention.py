"""Cross-attention scores, against a loop over captions with attended vectors: the score matrix of a
batch, forward and backward; with --steps, a whole training step of SCAN with a BiGRU; and with
--images, the evaluation of a test set in float32 against the loop in float64.

The loop of an evaluation runs on --sample captions at a time, and its time is scaled to all. With
--yardstick 0, the loop over a batch is left out.
"""

import numpy as np
import torch
from torch import nn

import arguments
import graph_lib
from benchmarks import common
from benchmarks.reference import naaf_by_caption, scan_by_caption
from lib.evaluation.caption_order import CAPTIONS_PER_IMAGE
from lib.model.cross_attention import chan_scores, scan_scores
from lib.model.naaf import NAAF
from lib.model.network import build_model
from lib.model.options import ModelOptions
from lib.objective.options import ObjectiveOptions
from lib.system.options import from_saved
from lib.training import engine, optim

TRAINING = common.header(
    "scores", "batch", "time", "loop over captions", "loop / time", "extra memory", "of the loop"
)
EVALUATION = common.header(
    "scores", "images x captions", "time", "loop, float64, scaled", "loop / time", "extra memory"
)
STEP = common.header("step", "batch", "time", "with the loop", "loop / time")
SHARD = 128  # images of the loop at a time, as published
VOCABULARY = 8000  # words
TILE = 500  # captions of ours at a time


def fragments(num_images, num_captions, device):
    """Regions, words and lengths: unit vectors, the captions sorted by length."""
    generator = np.random.default_rng(0)
    lengths = torch.from_numpy(-np.sort(-common.caption_lengths(num_captions, generator)))
    torch.manual_seed(0)
    regions = torch.randn(num_images, common.REGIONS, common.EMBED_SIZE)
    words = torch.randn(num_captions, int(lengths.max()), common.EMBED_SIZE)
    words *= (torch.arange(words.size(1)) < lengths[:, None]).unsqueeze(2)
    regions, words = (
        torch.nn.functional.normalize(part, dim=2, out=part).to(device) for part in (regions, words)
    )
    return regions, words, lengths


def scores(device):
    """Name -> (our scores, the loop's or None), functions of regions, words and lengths."""
    naaf = NAAF().to(device)

    def scan(direction, temperature):
        def ours(regions, words, lengths):
            return scan_scores(
                regions, words, None, lengths,
                cross_attention=direction, attention_temperature=temperature,
            )  # fmt: skip

        def loop(*inputs):
            return scan_by_caption(*inputs, direction, temperature)

        return ours, loop

    def by_naaf(regions, words, lengths):
        return naaf.train(words.requires_grad)(regions, words, None, lengths)

    def chan(regions, words, lengths):
        return chan_scores(regions, words, None, lengths)

    return {
        "scan t2i": scan("t2i", 9.0),
        "scan i2t": scan("i2t", 4.0),
        "naaf": (by_naaf, naaf_by_caption),
        "chan": (chan, None),
    }


def main():
    options = common.arguments(
        __doc__,
        scores=[*scores("cpu")],
        batch_size=[128],
        steps=[0],
        images=[0],
        sample=16,
        yardstick=1,
    )
    if any(options.batch_size):
        print(TRAINING)
    for batch_size in filter(None, options.batch_size):
        for name in options.scores:
            measure_training(name, batch_size, options)
    if any(options.steps):
        print(STEP)
    for batch_size in filter(None, options.steps):
        measure_step(batch_size, options)
    if any(options.images):
        print(EVALUATION)
    for num_images in filter(None, options.images):
        for name in options.scores:
            measure_evaluation(name, num_images, options)


def measure_training(name, batch_size, options):
    """Print the row of one score and batch size."""
    device = options.device
    regions, words, lengths = fragments(batch_size, batch_size, device)
    regions.requires_grad_(), words.requires_grad_()
    weights = torch.randn(batch_size, batch_size, device=device)

    def backward(function):
        def run():
            regions.grad = words.grad = None
            (function(regions, words, lengths) * weights).sum().backward()

        return run

    ours, loop = (function and backward(function) for function in scores(device)[name])
    loop = loop if options.yardstick else None
    functions = {"ours": ours} | ({"loop": loop} if loop else {})
    found = common.interleaved(functions, options.rounds, device)
    memory = {key: f"{_memory(run, device):.0f} MB" for key, run in functions.items()}
    by_loop = f"{found['loop']:.2f} s" if loop else ""
    ratio = f"{found['loop'] / found['ours']:.1f}" if loop else ""
    common.print_row(
        name, batch_size, f"{found['ours']:.3f} s", by_loop, ratio,
        memory["ours"], memory.get("loop", ""), common.hardware(device),
    )  # fmt: skip


class Loop(nn.Module):
    """The published scores in place of `lib.model.similarity.CrossAttention`."""

    def of_whole_batch(self, images, captions):
        return scan_by_caption(images.fragments, captions.fragments, captions.lengths)


def measure_step(batch_size, options):
    """Print the row of a training step of `--method scan`, as published on Flickr30K."""
    device, chosen = options.device, vars(arguments.parse_training(
        arguments.training_parser(), ["--method", "scan", "--dataset", "f30k"]
    ))  # fmt: skip
    torch.manual_seed(0)
    model = build_model(chosen, nn.Embedding(VOCABULARY, chosen["word_dim"]), common.REGION_DIM)
    objective = graph_lib.Objective(
        from_saved(ModelOptions, chosen), from_saved(ObjectiveOptions, chosen)
    )
    model.to(device).train()
    optimizer = optim.build(model, objective, chosen["learning_rate"])
    batch = common.random_batch(batch_size)
    batch = batch._replace(  # no region is dropped
        pieces=batch.pieces % VOCABULARY,
        region_lengths=torch.full((batch_size,), batch.regions.size(1)),
    ).to(device)
    similarities = {"ours": model.similarity, "loop": Loop()}

    def step(name):
        def run():
            model.similarity = similarities[name]
            engine.training_step(model, objective, optimizer, batch, use_graph=False, hardest=True)

        return run

    found = common.interleaved({name: step(name) for name in similarities}, options.rounds, device)
    ratio = f"{found['loop'] / found['ours']:.1f}"
    common.print_row(
        "scan t2i, BiGRU", batch_size, f"{found['ours']:.2f} s", f"{found['loop']:.2f} s", ratio,
        common.hardware(device),
    )  # fmt: skip


def _memory(run, device):
    return common.peak_memory(run, device)[0]


def measure_evaluation(name, num_images, options):
    """Print the row of one score and number of images, each with five captions."""
    device, num_captions = options.device, CAPTIONS_PER_IMAGE * num_images
    regions, words, lengths = fragments(num_images, num_captions, device)
    ours, loop = scores(device)[name]
    # one shard of images, and captions of all lengths; a GPU keeps doubles as the loop does
    chosen = torch.linspace(0, num_captions - 1, min(options.sample, num_captions)).long()
    images = regions[:SHARD].double()
    some = words[chosen.to(device)].double(), lengths[chosen]

    @torch.no_grad()
    def all_pairs():
        tiles = []
        for first in range(0, num_captions, TILE):
            longest = int(lengths[first])
            tile = slice(first, first + TILE)
            tiles.append(ours(regions, words[tile, :longest], lengths[tile]))
        return torch.cat(tiles, 1)

    @torch.no_grad()
    def sample():
        loop(images, *some)

    functions = {"ours": all_pairs} | ({"sample": sample} if loop else {})
    found = common.interleaved(functions, options.rounds, device)
    by_loop, ratio = "", ""
    if loop:
        seconds = found["sample"] * num_captions / len(chosen) * num_images / len(images)
        by_loop = f"{seconds:.0f} s, from {len(chosen)} x {len(images)} pairs"
        ratio = f"{seconds / found['ours']:.1f}"
    common.print_row(
        name, f"{num_images} x {num_captions}", f"{found['ours']:.1f} s", by_loop, ratio,
        f"{_memory(all_pairs, device):.0f} MB", common.hardware(device),
    )  # fmt: skip


if __name__ == "__main__":
    main()
