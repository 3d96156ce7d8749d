"""A score of every image with every caption, from the matches of their fragments, with gradient.

A score is any function of the matches of one pair (`lib/model/cross_attention.py`,
`lib/model/naaf.py`). It is written for a block of pairs; this module cuts the batch into blocks.
Backward holds one block at a time, and computes its matches again.
"""

# C captions, B images, R regions, L words, E embedding, M packed words
# a block: n captions, b images

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable

from .matches import BlockLimits, caption_groups, image_slices, product
from .packing import Packing
from .pooling import real_mask

SCORE_BLOCKS = {
    # a score reads its matches many times: a group of 1 MB stays in the cache
    "cpu": BlockLimits(128, 0, 2**23, 2**18),
    "cuda": BlockLimits(1024, 4096, 2**24),
}


class PairBlock(NamedTuple):
    """What a score of n captions and b images is computed from. Where nothing is padding, the mask
    is None. caption_side, image_side: tensors of the score's own, cut to these captions and their
    L pieces, and to these images."""

    match: torch.Tensor  # (n, L, R, b)
    padded_words: torch.Tensor | None  # (n, L, 1, 1) bool
    padded_regions: torch.Tensor | None  # (R, b) bool
    num_words: torch.Tensor  # (n, 1)
    num_regions: torch.Tensor  # (b,)
    caption_side: tuple[torch.Tensor, ...]
    image_side: tuple[torch.Tensor, ...]


Score = Callable[[PairBlock], torch.Tensor]


class _Plan:
    """How the pairs of some captions with all images are cut, and their masks."""

    def __init__(self, caption_lengths, region_lengths, num_regions, device, limits):
        self.blocks = image_slices(
            len(region_lengths), int(caption_lengths.sum()), num_regions, limits.matches
        )
        images = self.blocks[0].stop  # the most at a time
        self.groups = caption_groups(
            caption_lengths, caption_lengths, device, limits.padding,
            max(limits.group // (images * num_regions), 1) if limits.group else 0,
        )  # fmt: skip
        self.num_regions = region_lengths.to(device, non_blocking=True)
        self.padded_regions = None  # (R, B)
        if int(region_lengths.min()) < num_regions:
            self.padded_regions = ~real_mask(region_lengths, num_regions, device).T

    def pair_block(self, match, group, images, caption_side, image_side):
        """The `PairBlock` of a group with a block of images; match: (n, L, R, b)."""
        padded = self.padded_regions
        return PairBlock(
            match,
            ~group.is_real.unsqueeze(3) if group.has_padding else None,
            None if padded is None else padded[:, images],
            group.lengths,
            self.num_regions[images],
            caption_side,
            image_side,
        )


def _cut_sides(sides, group, images):
    """The tensors of both sides, cut to a group and a block of images: views."""
    captions, longest = group.captions, group.is_real.size(1)
    return (
        tuple(side[(captions, *[slice(longest)] * (side.dim() - 1))] for side in sides[0]),
        tuple(side[images] for side in sides[1]),
    )


class _ScorePairs(torch.autograd.Function):
    """Scores of all pairs, (C, B), from packed pieces (M, E) and regions (R, B, E).

    A score depends on the matches of its own pair, so backward needs no more than one block of
    them at a time. The last block of forward is kept where there is no other.
    """

    @staticmethod
    def forward(ctx, score, plan, num_caption_sides, packed, regions, *sides):
        ctx.score, ctx.plan, ctx.num_caption_sides, ctx.kept = score, plan, num_caption_sides, None
        ctx.save_for_backward(packed, regions, *sides)
        both = sides[:num_caption_sides], sides[num_caption_sides:]
        scores = packed.new_empty(plan.groups[-1].captions.stop, regions.size(1))
        for images in plan.blocks:
            match = product(packed, regions, images)
            for group in plan.groups:
                scores[group.captions, images] = score(
                    plan.pair_block(
                        group.unpack(match), group, images, *_cut_sides(both, group, images)
                    )
                )
        if len(plan.blocks) == 1 and any(ctx.needs_input_grad):
            ctx.kept = match
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        packed, regions, *sides = ctx.saved_tensors
        both = sides[: ctx.num_caption_sides], sides[ctx.num_caption_sides :]
        needed = ctx.needs_input_grad[5:]
        to_sides = [torch.zeros_like(side) if need else None for side, need in zip(sides, needed)]
        to_both = to_sides[: ctx.num_caption_sides], to_sides[ctx.num_caption_sides :]
        to_packed, to_regions = torch.zeros_like(packed), torch.empty_like(regions)
        with torch.autocast(packed.device.type, enabled=False):
            for images in ctx.plan.blocks:
                match = product(packed, regions, images) if ctx.kept is None else ctx.kept
                ctx.kept = None  # overwritten; a second backward computes it again
                for group in ctx.plan.groups:
                    _group_backward(ctx, match, group, images, both, to_both, gradient)
                matched = match.flatten(1)  # (M, R*b), by now the gradient of the matches
                to_packed.addmm_(matched, regions[:, images].flatten(0, 1))
                to_regions[:, images] = (matched.T @ packed).unflatten(0, (len(regions), -1))
        return None, None, None, to_packed, to_regions, *to_sides


def _group_backward(ctx, match, group, images, sides, to_sides, gradient):
    """Overwrite the group's rows of `match` by their gradient; add that of the sides to theirs."""
    leaf = group.unpack(match).detach().requires_grad_()
    cut = _cut_sides(sides, group, images)
    cut = [
        tuple(part.detach().requires_grad_(to is not None) for part, to in zip(parts, to_parts))
        for parts, to_parts in zip(cut, to_sides)
    ]
    with torch.enable_grad():
        scores = ctx.score(ctx.plan.pair_block(leaf, group, images, *cut))
    learnt = [part for parts in cut for part in parts if part.requires_grad]
    to_leaf, *found = torch.autograd.grad(
        scores, [leaf, *learnt], gradient[group.captions, images], allow_unused=True
    )
    match[group.rows] = 0 if to_leaf is None else group.pack(to_leaf)
    targets = [[to for to in to_parts if to is not None] for to_parts in to_sides]
    for target, change in zip([*_flat(_cut_sides(targets, group, images))], found):
        if change is not None:
            target += change


def _flat(parts):
    return [one for part in parts for one in part]


class Fragments(NamedTuple):
    """Fragments of both sides as scores read them: float32 or float64, padding is zero."""

    regions: torch.Tensor  # (B, R, E)
    words: torch.Tensor  # (C, L, E)
    region_lengths: torch.Tensor  # (B,) on the CPU, at least 1
    caption_lengths: torch.Tensor  # (C,) on the CPU


def clean_fragments(
    regions: torch.Tensor,
    words: torch.Tensor,
    region_lengths: torch.Tensor | None,
    caption_lengths: torch.Tensor,
) -> Fragments:
    """`Fragments` from what encoders return. Whatever padding holds is replaced by zeros;
    region_lengths: None where no region is padding."""
    if region_lengths is None:
        region_lengths = torch.full((len(regions),), regions.size(1))
    dtype = torch.promote_types(torch.promote_types(regions.dtype, words.dtype), torch.float32)
    longest = int(caption_lengths.max())
    region_lengths = region_lengths.clamp(min=1)
    return Fragments(
        _without_padding(regions.to(dtype), region_lengths),
        _without_padding(words[:, :longest].to(dtype), caption_lengths),
        region_lengths,
        caption_lengths,
    )


def _without_padding(fragments, lengths):
    if int(lengths.min()) == fragments.size(1):
        return fragments
    is_real = real_mask(lengths, fragments.size(1), fragments.device).unsqueeze(2)
    return fragments.masked_fill(~is_real, 0)


def score_pairs(
    score: Score,
    fragments: Fragments,
    caption_side: tuple[torch.Tensor, ...] = (),
    image_side: tuple[torch.Tensor, ...] = (),
) -> torch.Tensor:
    """The scores of all images with all captions, with gradient.

    score: returns (n, b) from a `PairBlock`; it changes nothing in place, and gradient reaches
    the fragments and both sides. caption_side: tensors (C,), (C, L) or (C, L, L); image_side:
    tensors (B, ...). Works on a block of captions and images at a time, of the size that
    SCORE_BLOCKS allows. Returns (B, C).
    """
    regions, words, region_lengths, lengths = fragments
    device, limits = words.device, SCORE_BLOCKS[words.device.type]
    order = None
    if bool((lengths.diff() > 0).any()):
        order = lengths.argsort(descending=True, stable=True)
        where = order.to(device, non_blocking=True)
        lengths, words = lengths[order], words.index_select(0, where)
        caption_side = tuple(side.index_select(0, where) for side in caption_side)
    by_position = regions.transpose(0, 1).contiguous()  # (R, B, E)
    found = []
    with torch.autocast(device.type, enabled=False):
        for first in range(0, len(words), limits.captions):
            some = slice(first, first + limits.captions)
            packed = Packing(lengths[some], words.size(1), device).pack(words[some])
            plan = _Plan(lengths[some], region_lengths, regions.size(1), device, limits)
            sides = *(side[some] for side in caption_side), *image_side
            found.append(
                _ScorePairs.apply(score, plan, len(caption_side), packed, by_position, *sides)
            )
    scores = found[0] if len(found) == 1 else torch.cat(found)
    if order is not None:
        scores = scores.index_select(0, order.argsort().to(device, non_blocking=True))
    return scores.T
