"""Ranks of a similarity matrix, against sorting the candidates of every query;
and of embeddings, without a matrix."""

import numpy as np
import torch

from benchmarks import common
from benchmarks.reference import ranks_by_sorting
from lib.evaluation import metrics
from lib.evaluation.similarity import Similarity

HEADER = common.header(
    "images x captions", "from", "ranks", "by sorting", "sorting / ranks", "peak extra memory"
)


def main():
    options = common.arguments(__doc__, images=[1000, 5000], yardstick=1, embeddings=0)
    print(HEADER)
    for num_images in options.images:
        (measure_embeddings if options.embeddings else measure)(num_images, options)


def measure(num_images, options):
    """Print the row of one matrix."""
    similarities = np.random.default_rng(0).random((num_images, 5 * num_images), dtype=np.float32)
    functions = {"ranks": lambda: metrics.ranks(similarities)}
    if options.yardstick:
        functions["sorting"] = lambda: ranks_by_sorting(similarities)
    found = common.interleaved(functions, options.rounds)
    memory = common.peak_memory(functions["ranks"])[0]
    sorting, ratio = "", ""
    if options.yardstick:
        sorting, ratio = f"{found['sorting']:.2f} s", f"{found['sorting'] / found['ranks']:.0f}"
    size, seconds = f"{num_images} x {5 * num_images}", f"{found['ranks']:.4f} s"
    common.print_row(
        size, "matrix", seconds, sorting, ratio, f"{memory:.0f} MB", common.hardware("cpu")
    )


def measure_embeddings(num_images, options):
    """Print the row of one set of embeddings, whose matrix is never held."""
    generator = torch.Generator().manual_seed(0)
    images, captions = (
        torch.nn.functional.normalize(
            torch.randn(count, common.EMBED_SIZE, generator=generator), dim=1
        )
        for count in (num_images, 5 * num_images)
    )
    similarities = Similarity(images, captions)
    found = common.interleaved({"ranks": lambda: metrics.ranks(similarities)}, options.rounds)
    memory = common.peak_memory(lambda: metrics.ranks(similarities))[0]
    size, seconds = f"{num_images} x {5 * num_images}", f"{found['ranks']:.2f} s"
    common.print_row(
        size, "embeddings", seconds, "", "", f"{memory:.0f} MB", common.hardware("cpu")
    )


if __name__ == "__main__":
    main()
