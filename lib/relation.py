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

from lib.pooling import length_groups, length_mask

SIGMA = 1.0
NEGATIVE_SLOPE = 0.1
SMALLEST_NORM = 1e-12
BLOCK_ELEMENTS = 2**20  # piece-region matches held at a time: 4 MB, so that a block stays in the processor's cache
BLOCK_PADDING = 8  # pieces of padding in a block


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
def fragment_matches(words, caption_lengths, regions, topk):
    """How the pieces of every caption match the regions of every image, in both directions (SPEC section 4).

    words: (B, L, E); caption_lengths: (B,) on the CPU; regions: (B, R, E), padded regions take part. A caption shorter
    than K lends its first K padded pieces to the K largest. Works on a block of captions at a time, of at most
    BLOCK_ELEMENTS piece-region matches. Returns Matches captions x images, Matches images x captions.
    """
    words, regions = F.normalize(words.float(), dim=-1), F.normalize(regions.float(), dim=-1)
    selected = caption_lengths.clamp(min=min(topk, words.size(1)))  # (B,) pieces that are read of each caption
    caption_to_image, image_to_caption = [], []
    for run, width in length_groups(selected, BLOCK_PADDING):
        at_once = max(BLOCK_ELEMENTS // (width * regions.shape[:2].numel()), 1)
        for start in range(run.start, run.stop, at_once):
            block = slice(start, min(start + at_once, run.stop))
            matched = _block_matches(words[block, :width], caption_lengths[block], selected[block], regions, topk)
            caption_to_image.append(matched[0])
            image_to_caption.append(matched[1])
    t2i, i2t = (Matches(*map(torch.cat, zip(*blocks))) for blocks in (caption_to_image, image_to_caption))
    return t2i, Matches(*(pairs.transpose(0, 1) for pairs in i2t))


def _block_matches(words, lengths, selected, regions, topk):
    """Both directions' `Matches` of n captions: words (n, L, E) with all images: regions (B, R, E); unit rows."""
    num_captions, longest = words.shape[:2]
    cosine = words.flatten(0, 1) @ regions.flatten(0, 1).T
    match = F.leaky_relu_(cosine, NEGATIVE_SLOPE).view(num_captions, longest, *regions.shape[:2])  # (n, L, B, R)
    is_selected = length_mask(selected, longest, words.device)[:, :, None, None]
    is_real = length_mask(lengths, longest, words.device)[:, :, None]
    if int(selected.min()) < longest:
        match.masked_fill_(~is_selected, 0)

    over_regions = match.norm(dim=3, keepdim=True).clamp(min=SMALLEST_NORM)  # a norm for each piece: (n, L, B, 1)
    eligible = match / over_regions
    if int(lengths.min()) < longest:
        eligible.masked_fill_(~is_real.unsqueeze(3), -torch.inf)
    region_match = eligible.amax(1)  # (n, B, R)

    over_pieces = match.norm(dim=1, keepdim=True).clamp(min=SMALLEST_NORM)  # a norm for each region: (n, 1, B, R)
    piece_match = match.div_(over_pieces).amax(3)  # (n, L, B)
    mean = piece_match.masked_fill(~is_real, 0).sum(1) / lengths.to(words.device, non_blocking=True).unsqueeze(1)
    piece_match = piece_match.masked_fill(~is_selected.squeeze(3), -torch.inf).transpose(1, 2)  # (n, B, L)
    return Matches(mean, _largest(piece_match, topk)), Matches(region_match.mean(2), _largest(region_match, topk))


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

    def forward(self, regions, words, caption_lengths):
        """regions: (B, R, E); words: (B, L, E); caption_lengths: (B,) on the CPU. Returns i2t and t2i `Relation`."""
        t2i, i2t = fragment_matches(words, caption_lengths, regions, self.topk)
        return self._relation(self.mlp_i2t, i2t), self._relation(self.mlp_t2i, t2i)

    def _relation(self, mlp, matches):
        relevance = mlp(matches.largest).squeeze(-1) + matches.mean
        return Relation(connection(matches.mean, self.threshold), relevance)


class InstanceRelations(nn.Module):
    """The four relation blocks of a batch."""

    def __init__(self, topk, threshold):
        super().__init__()
        self.threshold = threshold
        self.cross_modal = CrossModalRelation(topk, threshold)

    def forward(self, images, captions):
        """images, captions: `Encoded`, B each. Returns `Relations`."""
        i2t, t2i = self.cross_modal(images.fragments, captions.fragments, captions.lengths)
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
