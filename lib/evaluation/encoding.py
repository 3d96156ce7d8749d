"""Encode a split and compute its similarities (docs/method.md, section 7)."""

# N images, C captions, E embedding

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from ..system import distributed
from ..system.errors import InputError
from .similarity import Scored, ScoreMatrix, Similarity

# Fixed because the last bit of an embedding depends on the batch size. Every evaluation of a model
# gives the same bytes.
EVAL_BATCH_SIZE = 128


class Split(Protocol):
    """The part of `lib.data.dataset.RetrievalDataset` that encoding and clustering need."""

    folder: Path
    split: str
    captions: Any  # lib.data.captions.Captions
    caption_images: np.ndarray

    @property
    def num_images(self) -> int: ...
    @property
    def region_dim(self) -> int: ...
    def image_block(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]: ...
    def caption_block(self, which: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]: ...


@torch.no_grad()
def encode_images(
    model: torch.nn.Module,
    dataset: Split,
    device: torch.device,
    batch_size: int = EVAL_BATCH_SIZE,
) -> torch.Tensor:
    """Embeddings of all images, (N, E), on the CPU. Each image is encoded once."""
    model.eval()

    def encode(start: int) -> torch.Tensor:
        regions, lengths = dataset.image_block(start, min(start + batch_size, dataset.num_images))
        return model.image_encoder(regions.to(device), lengths).embedding.float().cpu()

    return torch.cat(
        distributed.map_sharded(encode, range(0, dataset.num_images, batch_size), "images")
    )


@torch.no_grad()
def encode_captions(
    model: torch.nn.Module,
    dataset: Split,
    device: torch.device,
    batch_size: int = EVAL_BATCH_SIZE,
) -> torch.Tensor:
    """Embeddings of all captions, (C, E), on the CPU, in the order of the file.

    Captions are encoded from the longest to the shortest.
    """
    model.eval()
    order = np.argsort(-dataset.captions.lengths, kind="stable")

    def encode(start: int) -> torch.Tensor:
        pieces, lengths = dataset.caption_block(order[start : start + batch_size])
        encoded = model.text_encoder(pieces.to(device), lengths, least_pieces=0)
        return encoded.embedding.float().cpu()

    blocks = distributed.map_sharded(encode, range(0, len(order), batch_size), "captions")
    return torch.cat(blocks)[np.argsort(order)]


class _Fragments(NamedTuple):
    """Fragments and lengths of a block of images or captions, with the fields that
    `model.similarity` reads of what encoders return."""

    fragments: torch.Tensor  # (n, ..., E)
    lengths: torch.Tensor  # (n,)

    def to(self, device: torch.device) -> "_Fragments":
        return self._replace(fragments=self.fragments.to(device))


@torch.no_grad()
def fragment_scores(
    model: torch.nn.Module, images: Split, captions: Split, device: torch.device
) -> np.ndarray:
    """Cross-attention scores of the images of one split with the captions of another, (N, C)
    float32. Works on a block of images and captions at a time.

    Raises InputError if a score is not finite.
    """
    model.eval()
    order = np.argsort(-captions.captions.lengths, kind="stable")

    def encode_images(start: int) -> _Fragments:
        stop = min(start + EVAL_BATCH_SIZE, images.num_images)
        regions, lengths = images.image_block(start, stop)
        return _Fragments(model.image_encoder(regions.to(device), lengths).fragments.cpu(), lengths)

    blocks = distributed.map_sharded(
        encode_images, range(0, images.num_images, EVAL_BATCH_SIZE), "images"
    )

    def score(start: int) -> torch.Tensor:
        pieces, lengths = captions.caption_block(order[start : start + EVAL_BATCH_SIZE])
        encoded = model.text_encoder(pieces.to(device), lengths, least_pieces=0)
        own = _Fragments(encoded.fragments, lengths)
        return torch.cat([model.similarity(block.to(device), own).cpu() for block in blocks])

    columns = distributed.map_sharded(score, range(0, len(order), EVAL_BATCH_SIZE), "scores")
    found = torch.cat(columns, dim=1)[:, np.argsort(order)]
    if not found.isfinite().all():
        raise _diverged(images, "scores")
    return found.numpy()


def _diverged(dataset, what):
    return InputError(
        f"{dataset.folder}: the model has diverged (found NaN or Inf in the {what} of the "
        f"{dataset.split} split, expected finite {what}). Train with a smaller --learning_rate, or "
        "use another checkpoint"
    )


def similarities(model: torch.nn.Module, dataset: Split, device: torch.device) -> Scored:
    """Similarities of all images with all captions of a split, (N, C).

    Raises InputError if an embedding or a score is not finite.
    """
    if model.similarity is not None:
        matrix = fragment_scores(model, dataset, dataset, device)
        return ScoreMatrix(matrix, dataset.caption_images)
    images = encode_images(model, dataset, device)
    captions = encode_captions(model, dataset, device)
    if not (images.isfinite().all() and captions.isfinite().all()):
        raise _diverged(dataset, "embeddings")
    return Similarity(images, captions, dataset.caption_images)
