"""The cross-modal relations of a batch, forward and backward, against a loop over captions."""

import numpy as np
import torch

from benchmarks import common
from benchmarks.reference import relations_by_caption
from lib.objective.relation import CrossModalRelation

HEADER = common.header(
    "batch", "relations", "loop over captions", "loop / relations", "peak extra memory"
)


def main():
    options = common.arguments(__doc__, batch_size=[64, 128, 256, 512, 1024], yardstick=1)
    print(HEADER)
    for batch_size in options.batch_size:
        measure(batch_size, options)


def measure(batch_size, options):
    """Print the row of one batch size."""
    device, generator = options.device, np.random.default_rng(0)
    lengths = torch.from_numpy(-np.sort(-common.caption_lengths(batch_size, generator)))
    words = torch.randn(batch_size, int(lengths.max()), common.EMBED_SIZE, device=device)
    regions = torch.randn(batch_size, common.REGIONS, common.EMBED_SIZE, device=device)
    module = CrossModalRelation(topk=10).to(device)

    def relations():
        i2t, t2i = module(regions, words, lengths)
        (i2t.relevance.sum() + t2i.relevance.sum()).backward()

    def loop():
        t2i, _, i2t, _ = relations_by_caption(
            words, lengths, regions, module.mlp_t2i, module.mlp_i2t, topk=10
        )
        (i2t.sum() + t2i.sum()).backward()

    functions = {"relations": relations} | ({"loop": loop} if options.yardstick else {})
    found = common.interleaved(functions, options.rounds, device)
    by_loop, ratio = "", ""
    if options.yardstick:
        by_loop, ratio = f"{found['loop']:.3f} s", f"{found['loop'] / found['relations']:.1f}"
    memory = common.peak_memory(relations, device)[0]
    seconds = f"{found['relations']:.4f} s"
    common.print_row(
        batch_size, seconds, by_loop, ratio, f"{memory:.0f} MB", common.hardware(device)
    )


if __name__ == "__main__":
    main()
