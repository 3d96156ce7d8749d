"""Encode a split; similarities of its images with its captions: tensors in and out
(docs/method.md, section 7)."""

# N images, C captions, E embedding

import numpy as np
import torch

from ..system import distributed
from ..system.errors import InputError
from .metrics import Similarity

# Fixed, because the last bit of an embedding depends on it: every evaluation of a model gives the
# same bytes.
EVAL_BATCH_SIZE = 128


@torch.no_grad()
def encode_images(model, dataset, device, batch_size=EVAL_BATCH_SIZE):
    """Embeddings of every image of a `dataset.RetrievalDataset`, each encoded once. Returns
    (N, E), on the CPU."""
    model.eval()

    def encode(start):
        regions, lengths = dataset.image_block(start, min(start + batch_size, dataset.num_images))
        return model.image_encoder(regions.to(device), lengths).embedding.float().cpu()

    return torch.cat(
        distributed.map_sharded(encode, range(0, dataset.num_images, batch_size), "images")
    )


@torch.no_grad()
def encode_captions(model, dataset, device, batch_size=EVAL_BATCH_SIZE):
    """Embeddings of every caption, encoded in order of length. Returns (C, E),
    in the file's order, on the CPU."""
    model.eval()
    order = np.argsort(-dataset.captions.lengths, kind="stable")

    def encode(start):
        pieces, lengths = dataset.caption_block(order[start : start + batch_size])
        return (
            model.text_encoder(pieces.to(device), lengths, least_pieces=0).embedding.float().cpu()
        )

    blocks = distributed.map_sharded(encode, range(0, len(order), batch_size), "captions")
    return torch.cat(blocks)[np.argsort(order)]


def similarities(model, dataset, device):
    """Similarities of every image with every caption of a data set.
    Returns `metrics.Similarity`, (N, C).

    Raises InputError where an embedding is not finite.
    """
    images, captions = (
        encode_images(model, dataset, device),
        encode_captions(model, dataset, device),
    )
    if not (images.isfinite().all() and captions.isfinite().all()):
        raise InputError(
            f"{dataset.folder}: the model makes NaN or Inf of the {dataset.split} split, expected "
            "finite embeddings: it has diverged; train with a smaller --learning_rate, or take "
            "another checkpoint"
        )
    return Similarity(images, captions, dataset.caption_images)
