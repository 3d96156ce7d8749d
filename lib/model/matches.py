"""Matches of all caption fragments with all image fragments of a batch, in bounded blocks.

The product of all fragments is what HREM's cross-modal relations (docs/method.md, section 4) and
the cross-attention scores have in common. Captions are grouped by length, so that few positions
are padding; images are the innermost dimension, so that sums over pieces and over regions run over
contiguous rows.
"""

# C captions, B images, R regions, L pieces, E embedding, M packed pieces
# a group: n captions, m packed pieces of theirs, b images

from collections.abc import Iterator
from typing import NamedTuple

import torch

from .packing import Packing
from .pooling import length_groups, real_mask


class BlockLimits(NamedTuple):
    """How pairs are cut: captions at a time, their most padding,
    and most matches of pieces with regions.

    A match takes 4 bytes; it is held once for a block, and a few times more for a group of captions
    of like length. At least one image is taken at a time. group: most matches of a group, or 0: any
    number; at least one caption is taken at a time.
    """

    captions: int
    padding: int
    matches: int
    group: int = 0


BLOCKS = {
    # 32 MB; captions of one length need neither copies nor masks
    "cpu": BlockLimits(1024, 0, 2**23),
    # 64 MB: 128 pairs in one block, for launching kernels takes the time
    "cuda": BlockLimits(1024, 4096, 2**24),
}


class CaptionGroup(NamedTuple):
    """A run of n captions of like length: where they lie in the batch and in its packed pieces,
    and their masks."""

    captions: slice
    rows: slice
    packing: Packing | None  # where some have fewer than L selected pieces
    lengths: torch.Tensor  # (n, 1)
    is_real: torch.Tensor  # (n, L, 1)
    is_selected: torch.Tensor  # (n, L, 1)
    has_padding: bool

    def unpack(self, match: torch.Tensor) -> torch.Tensor:
        """The group's rows of (M, ...), padded: (n, L, ...), zero where nothing is selected."""
        match = match[self.rows]
        if self.packing is None:
            return match.unflatten(0, self.is_real.shape[:2])
        return self.packing.unpack(match)

    def pack(self, padded: torch.Tensor) -> torch.Tensor:
        """The selected pieces of (n, L, ...): (m, ...)."""
        return padded.flatten(0, 1) if self.packing is None else self.packing.pack(padded)


def caption_groups(
    lengths: torch.Tensor,
    selected: torch.Tensor,
    device: torch.device,
    most_padding: int,
    most_pieces: int = 0,
) -> list[CaptionGroup]:
    """The groups of C captions. lengths, selected: (C,) on the CPU, the true pieces and those that
    are packed; most_padding: see `length_groups`; most_pieces: of a group, padding included, or 0:
    any number."""
    ends = selected.cumsum(0).tolist()
    groups = []
    for run, longest in _cut(length_groups(selected, most_padding), most_pieces):
        is_real, is_selected = (
            real_mask(counts[run], longest, device).unsqueeze(2) for counts in (lengths, selected)
        )
        rows = slice(ends[run.start] - int(selected[run.start]), ends[run.stop - 1])
        packing = (
            Packing(selected[run], longest, device) if int(selected[run].min()) < longest else None
        )
        counted = lengths[run].to(device, non_blocking=True).unsqueeze(1)
        has_padding = int(lengths[run].min()) < longest
        groups.append(CaptionGroup(run, rows, packing, counted, is_real, is_selected, has_padding))
    return groups


def _cut(runs, most_pieces):
    """Runs of captions, (slice, longest) each, cut where they have more than `most_pieces`."""
    for run, longest in runs:
        at_once = max(most_pieces // longest, 1) if most_pieces else run.stop - run.start
        for first in range(run.start, run.stop, at_once):
            yield slice(first, min(first + at_once, run.stop)), longest


def image_slices(num_images: int, num_pieces: int, num_regions: int, most: int) -> list[slice]:
    """Images that are taken at a time, so that they have at most `most` matches with M pieces."""
    at_once = max(most // (num_pieces * num_regions), 1)
    return [
        slice(first, min(first + at_once, num_images)) for first in range(0, num_images, at_once)
    ]


def product(packed: torch.Tensor, regions: torch.Tensor, images: slice) -> torch.Tensor:
    """Inner products of all pieces with all regions of some images.

    packed: (M, E); regions: (R, B, E). Returns (M, R, b).
    """
    return (packed @ regions[:, images].flatten(0, 1).T).unflatten(1, (len(regions), -1))


def image_blocks(
    packed: torch.Tensor, regions: torch.Tensor, most: int
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Of each block: its images and their `product` with all pieces. most: matches of a block."""
    for images in image_slices(regions.size(1), len(packed), len(regions), most):
        yield images, product(packed, regions, images)
