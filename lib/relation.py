"""Instance-level relations of a batch: connection, relevance, and the regulariser (SPEC section 4).

Every function works on all pairs of the batch at once. Fragments come detached: gradient reaches the relations
through the embeddings (intra-modal) and through the two small MLPs (cross-modal) alone.
"""

# B pairs, R regions, L pieces, E embedding, K = topk

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from lib.packing import Packing
from lib.pooling import length_groups, length_mask

SIGMA = 1.0
NEGATIVE_SLOPE = 0.1
SMALLEST_NORM = 1e-12


class Relation(NamedTuple):
    """One (B, B) block of the instance graph; row i relates instance i to every instance of the other side."""

    is_connected: torch.Tensor
    relevance: torch.Tensor


class Relations(NamedTuple):
    """The four blocks of the graph; i stands for images, t for captions, rows before columns."""

    i2i: Relation
    i2t: Relation
    t2i: Relation
    t2t: Relation


class BlockLimits(NamedTuple):
    """Most matches of pieces with regions at a time, if of more than one image; most padding of a group of captions.

    A match takes 4 bytes, and up to three forms of it are held.
    """

    matches: int
    padding: int


BLOCKS = {
    "cpu": BlockLimits(2**20, 128),  # 4 MB stay in the processor's cache
    "cuda": BlockLimits(2**24, 4096),  # 64 MB: a batch of 128 in one block, since launching kernels is what takes time
}


class Matches(NamedTuple):
    """What the fragments say of every pair in one direction: mean (B, B) and the K largest matches (B, B, K)."""

    mean: torch.Tensor
    largest: torch.Tensor


def connection(closeness, threshold):
    """Connected, row by row: at least as close as the floor(B * threshold)-th closest (never fewer than one).

    closeness: (B, B). Returns (B, B) bool.
    """
    count = max(int(closeness.size(1) * threshold), 1)
    return closeness >= closeness.topk(count, dim=1).values[:, -1:]


def distance_relevance(left, right):
    """exp(-||l_i - r_j|| / sigma), (B, B), with gradient 0 at distance 0; distances are exact."""
    distances = torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.exp(-distances / SIGMA)


def intra_modal(embeddings, threshold):
    """Relation of the instances of one modality. embeddings: (B, E). Returns `Relation`."""
    closeness = (embeddings @ embeddings.T).detach()
    return Relation(connection(closeness, threshold), distance_relevance(embeddings, embeddings))


@torch.no_grad()
def fragment_matches(words, caption_lengths, regions, topk, region_lengths=None):
    """How the pieces of every caption match the regions of every image, in both directions (SPEC section 4).

    words: (C, L, E); caption_lengths: (C,) on the CPU; regions: (B, R, E), padded regions take part, as published,
    unless region_lengths, (B,) on the CPU, says how many are true. A caption shorter than K lends its first K padded
    pieces to the K largest. The pieces of all captions meet a block of images at a time, of the size that BLOCKS
    allows. Returns Matches captions x images, Matches images x captions.
    """
    num_captions, num_images, num_regions = len(words), *regions.shape[:2]
    selected = caption_lengths.clamp(min=min(topk, words.size(1)))  # (C,) pieces that are read of each caption
    packed = Packing(selected, words.size(1), words.device).pack(F.normalize(words.float(), dim=-1))  # (M, E)
    regions = F.normalize(regions.float(), dim=-1).transpose(0, 1)  # (R, B, E)
    is_padding = None  # (R, B), where padded regions take no part and there are any
    if region_lengths is not None and int(region_lengths.min()) < num_regions:
        is_padding = ~length_mask(region_lengths, num_regions, regions.device).T
        regions = regions.masked_fill(is_padding.unsqueeze(2), 0)  # what matches nothing adds nothing to a norm
    limits = BLOCKS[words.device.type]
    groups = _caption_groups(caption_lengths, selected, words.device, limits.padding)
    pairs = num_captions, num_images
    t2i, i2t = (Matches(packed.new_empty(pairs), packed.new_empty(*pairs, topk)) for _ in range(2))
    at_once = max(limits.matches // (len(packed) * num_regions), 1)
    for first in range(0, num_images, at_once):
        images = slice(first, min(first + at_once, num_images))
        unseen = None if is_padding is None else is_padding[:, images]
        cosine = packed @ regions[:, images].flatten(0, 1).T
        match = F.leaky_relu_(cosine, NEGATIVE_SLOPE).unflatten(1, (num_regions, -1))  # (M, R, b)
        for group in groups:
            matched = _group_matches(match[group.rows], group, topk, unseen)
            for found, values in zip((t2i, i2t), matched):
                found.mean[group.captions, images], found.largest[group.captions, images] = values
    return t2i, Matches(*(values.transpose(0, 1) for values in i2t))


class CaptionGroup(NamedTuple):
    """A run of n captions of like length: where they lie in the batch and in its packed pieces, and their masks."""

    captions: slice
    rows: slice
    packing: Packing
    lengths: torch.Tensor  # (n, 1)
    is_real: torch.Tensor  # (n, L, 1)
    is_selected: torch.Tensor  # (n, L, 1)
    has_unreal: bool


def _caption_groups(lengths, selected, device, most_padding):
    ends = selected.cumsum(0).tolist()
    groups = []
    for run, longest in length_groups(selected, most_padding):
        is_real, is_selected = (
            length_mask(counts[run], longest, device).unsqueeze(2) for counts in (lengths, selected)
        )
        rows = slice(ends[run.start] - int(selected[run.start]), ends[run.stop - 1])
        packing = Packing(selected[run], longest, device)
        counted = lengths[run].to(device, non_blocking=True).unsqueeze(1)
        groups.append(
            CaptionGroup(run, rows, packing, counted, is_real, is_selected, int(lengths[run].min()) < longest)
        )
    return groups


def _group_matches(match, group, topk, is_padding=None):
    """Both directions' `Matches`, captions first, of n captions and b images.

    match: (m, R, b), packed; is_padding: (R, b) bool, the regions that take no part, or None.
    """
    match = group.packing.unpack(match)  # (n, L, R, b), zero where nothing is selected
    squares = match.square()  # norms by hand: norm() over a dimension that is not the last takes fifty times as long
    over_regions = squares.sum(2, keepdim=True).sqrt_().clamp_(min=SMALLEST_NORM)  # of each piece: (n, L, 1, b)
    over_pieces = squares.sum(1, keepdim=True).sqrt_().clamp_(min=SMALLEST_NORM)  # of each region: (n, 1, R, b)
    eligible = torch.div(match, over_regions, out=squares)
    if group.has_unreal:
        eligible.masked_fill_(~group.is_real[..., None], -torch.inf)
    region_match = eligible.amax(1).transpose(1, 2)  # (n, b, R)

    match.div_(over_pieces)
    if is_padding is not None:
        match.masked_fill_(is_padding, -torch.inf)
    piece_match = match.amax(2)  # (n, L, b)
    mean = piece_match.masked_fill(~group.is_real, 0).sum(1) / group.lengths
    piece_match = piece_match.masked_fill(~group.is_selected, -torch.inf).transpose(1, 2)  # (n, b, L)
    to_images = Matches(mean, _largest(piece_match, topk))
    if is_padding is None:
        return to_images, Matches(region_match.mean(2), _largest(region_match, topk))
    mean = region_match.masked_fill(is_padding.T, 0).sum(2) / (~is_padding).sum(0)
    return to_images, Matches(mean, _largest(region_match.masked_fill(is_padding.T, -torch.inf), topk))


def _largest(matches, topk):
    """The K largest values of the last dimension, descending, filled with zeros to length K; -inf counts not."""
    largest = matches.topk(min(topk, matches.size(2)), dim=2).values
    return F.pad(largest.masked_fill(largest.isinf(), 0), (0, topk - largest.size(2)))


class CrossModalRelation(nn.Module):
    """Relations between captions and images from their fragments: relevance = MLP(K largest matches) + mean match."""

    def __init__(self, topk, threshold):
        super().__init__()
        self.topk, self.threshold = topk, threshold
        self.mlp_t2i = nn.Sequential(nn.Linear(topk, topk), nn.ReLU(), nn.Linear(topk, 1))
        self.mlp_i2t = copy.deepcopy(self.mlp_t2i)  # the two directions start equal

    def forward(self, regions, words, caption_lengths, region_lengths=None):
        """regions: (B, R, E); words: (B, L, E); lengths: see `fragment_matches`. Returns i2t and t2i `Relation`."""
        t2i, i2t = fragment_matches(words, caption_lengths, regions, self.topk, region_lengths)
        return self._relation(self.mlp_i2t, i2t), self._relation(self.mlp_t2i, t2i)

    def _relation(self, mlp, matches):
        relevance = mlp(matches.largest).squeeze(-1) + matches.mean
        return Relation(connection(matches.mean, self.threshold), relevance)


class InstanceRelations(nn.Module):
    """The four relation blocks of a batch; with `mask_padding` padded regions take no part."""

    def __init__(self, topk, threshold, mask_padding=False):
        super().__init__()
        self.threshold, self.mask_padding = threshold, mask_padding
        self.cross_modal = CrossModalRelation(topk, threshold)

    def forward(self, images, captions):
        """images, captions: `Encoded`, B each. Returns `Relations`."""
        region_lengths = images.lengths if self.mask_padding else None
        i2t, t2i = self.cross_modal(images.fragments, captions.fragments, captions.lengths, region_lengths)
        return Relations(
            intra_modal(images.embedding, self.threshold), i2t, t2i, intra_modal(captions.embedding, self.threshold)
        )


def regulariser(relations, image_embeddings, caption_embeddings):
    """KL divergence of the learnt cross-modal relevance from that of the embeddings, both directions (SPEC 4).

    Gradient reaches the relevance only. image_embeddings, caption_embeddings: (B, E). Returns a scalar.
    """
    target = distance_relevance(image_embeddings.detach(), caption_embeddings.detach())
    pairs = ((relations.i2t.relevance, target), (relations.t2i.relevance, target.T))
    return sum(_row_divergence(learnt, given) for learnt, given in pairs)


def _row_divergence(learnt, given):
    learnt, given = learnt.log_softmax(1), given.log_softmax(1)
    return F.kl_div(given, learnt, reduction="batchmean", log_target=True)
