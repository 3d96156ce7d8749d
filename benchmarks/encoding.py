"""Encoding 1000 images and 5000 captions, against BertModel's forward on the same captions,
padded as they come."""

import numpy as np
import torch

from benchmarks import common
from benchmarks.reference import bert_on_padding
from lib.data.captions import Captions, SpecialIds
from lib.data.dataset import pad_pieces
from lib.evaluation.caption_order import CAPTIONS_PER_IMAGE
from lib.evaluation.encoding import encode_captions, encode_images

HEADER = common.header("images, captions", "encoding", "BertModel", "encoding / BertModel")
BATCH = 128


class RandomSplit:
    """What encoding asks of a data set, with random features and captions of real lengths."""

    def __init__(self, num_images):
        generator = np.random.default_rng(0)
        self.num_images = num_images
        lengths = common.caption_lengths(CAPTIONS_PER_IMAGE * num_images, generator)
        self.ids = common.random_captions(lengths, generator)
        starts = np.concatenate(([0], np.cumsum(lengths - 2)))
        pieces = np.concatenate([ids[1:-1] for ids in self.ids])
        self.captions = Captions(
            pieces, np.arange(len(pieces) + 1), starts, SpecialIds(101, 102, 103, 30522)
        )
        self.regions = torch.rand(num_images, common.REGIONS, common.REGION_DIM)

    def image_block(self, start, stop):
        return self.regions[start:stop], torch.full((stop - start,), common.REGIONS)

    def caption_block(self, which):
        return pad_pieces([self.ids[index] for index in which])


def main():
    options = common.arguments(__doc__, images=[1000])
    print(HEADER)
    for num_images in options.images:
        measure(num_images, options)


def measure(num_images, options):
    """Print the row of one size."""
    split, device = RandomSplit(num_images), options.device
    model = common.published_model(device)[0].eval()
    bert = model.text_encoder.bert

    def encoding():
        encode_images(model, split, device)
        encode_captions(model, split, device)

    @torch.no_grad()
    def reference():
        for start in range(0, len(split.ids), BATCH):
            bert_on_padding(bert, pad_pieces(split.ids[start : start + BATCH])[0].to(device))

    found = common.interleaved(
        {"encoding": encoding, "BertModel": reference}, options.rounds, device
    )
    ratio = f"{found['encoding'] / found['BertModel']:.2f}"
    seconds = [f"{found[name]:.2f} s" for name in ("encoding", "BertModel")]
    common.print_row(f"{num_images}, {len(split.ids)}", *seconds, ratio, common.hardware(device))


if __name__ == "__main__":
    main()
