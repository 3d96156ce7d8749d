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

from lib.pooling import length_mask

SIGMA = 1.0
NEGATIVE_SLOPE = 0.1


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

    words: (B, L, E); caption_lengths: (B,); regions: (B, R, E), padded regions take part. A caption shorter than K
    lends its first K padded pieces to the K largest. Returns Matches captions x images, Matches images x captions.
    """
    words, regions = F.normalize(words, dim=-1), F.normalize(regions, dim=-1)
    cosine = torch.einsum("tle,vre->tvlr", words, regions)  # (B, B, L, R)
    match = F.leaky_relu(cosine, NEGATIVE_SLOPE)
    longest = words.size(1)
    is_real = length_mask(caption_lengths, longest)[:, None, :]  # (B, 1, L)
    is_selected = length_mask(caption_lengths.clamp(min=topk), longest)[:, None, :]
    lengths = caption_lengths.unsqueeze(1)

    over_pieces = F.normalize(match.masked_fill(~is_selected.unsqueeze(-1), 0), dim=2)
    piece_match = over_pieces.amax(3)  # (B, B, L)
    caption_to_image = Matches(
        piece_match.masked_fill(~is_real, 0).sum(2) / lengths, _largest(piece_match, is_selected, topk)
    )

    over_regions = F.normalize(match, dim=3)
    region_match = over_regions.masked_fill(~is_real.unsqueeze(-1), -torch.inf).amax(2)  # (B, B, R)
    image_to_caption = Matches(region_match.mean(2), _largest(region_match, torch.ones_like(is_real[..., :1]), topk))
    return caption_to_image, Matches(*(pairs.transpose(0, 1) for pairs in image_to_caption))


def _largest(matches, is_eligible, topk):
    """The K largest eligible values of the last dimension, in descending order, filled with zeros to length K."""
    count = min(topk, matches.size(2))
    largest = matches.masked_fill(~is_eligible, -torch.inf).topk(count, dim=2).values
    return F.pad(largest.masked_fill(largest.isinf(), 0), (0, topk - count))


class CrossModalRelation(nn.Module):
    """Relations between captions and images from their fragments: relevance = MLP(K largest matches) + mean match."""

    def __init__(self, topk, threshold):
        super().__init__()
        self.topk, self.threshold = topk, threshold
        self.mlp_t2i = nn.Sequential(nn.Linear(topk, topk), nn.ReLU(), nn.Linear(topk, 1))
        self.mlp_i2t = copy.deepcopy(self.mlp_t2i)  # the two directions start equal

    def forward(self, regions, words, caption_lengths):
        """regions: (B, R, E); words: (B, L, E); caption_lengths: (B,). Returns Relation i2t, Relation t2i."""
        t2i, i2t = fragment_matches(words.detach(), caption_lengths, regions.detach(), self.topk)
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
