"""Instance-level relations of a batch: connection, relevance, and the regulariser
(docs/method.md, section 4).

Every function works on all pairs of the batch at once. Fragments are detached: gradient reaches the
relations only through the embeddings (intra-modal) and the two small MLPs (cross-modal).
"""

# B pairs, R regions, L pieces, E embedding, K = topk

import copy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from ..model.encoders import Encoded
from ..model.matches import BLOCKS, caption_groups, image_blocks
from ..model.packing import Packing
from ..model.pooling import real_mask
from ..system import distributed

SIGMA = 1.0
NEGATIVE_SLOPE = 0.1
SMALLEST_NORM = 1e-12


class Relation(NamedTuple):
    """One (B, B) block of the instance graph; row i relates instance i to every instance of the
    other side.

    connection: bool, or soft: float weights from 0 (not connected) to 1.
    """

    connection: torch.Tensor
    relevance: torch.Tensor


class PairScores(NamedTuple):
    """One (B, B) block before its instances are connected. closeness has no gradient."""

    closeness: torch.Tensor
    relevance: torch.Tensor


class Relations(NamedTuple):
    """The four blocks of the graph; i stands for images, t for captions, rows before columns."""

    i2i: Relation
    i2t: Relation
    t2i: Relation
    t2t: Relation


def whole_graph(
    i2i: torch.Tensor, i2t: torch.Tensor, t2i: torch.Tensor, t2t: torch.Tensor
) -> torch.Tensor:
    """Four blocks (B, B) as the matrix of all 2B instances, (2B, 2B): [[i2i, i2t], [t2i, t2t]]."""
    return torch.cat([torch.cat([i2i, i2t], dim=1), torch.cat([t2i, t2t], dim=1)])


class Matches(NamedTuple):
    """What the fragments say of every pair in one direction: mean
    (B, B) and the K largest matches (B, B, K)."""

    mean: torch.Tensor
    largest: torch.Tensor


def connection(closeness: torch.Tensor, threshold: float) -> torch.Tensor:
    """Each row is connected to the floor(B * threshold) closest instances (at least one), and to
    those that are equally close.

    closeness: (B, B). Returns (B, B) bool. A connection of your own may be soft, a float weight
    from 0 to 1: the attention adds its logarithm to the logits, so 0 is not connected, and 1 is the
    same as True. Gradient flows through weights above 0. To learn the weights, see
    `InstanceRelations.connect`.
    """
    count = max(int(closeness.size(1) * threshold), 1)
    return closeness >= closeness.topk(count, dim=1).values[:, -1:]


class _Distances(torch.autograd.Function):
    """Euclidean distances of all pairs of rows: (..., n, E), (..., m, E) -> (..., n, m),
    with gradient 0 at distance 0.

    The values are torch.cdist's. Its backward on a GPU holds all n x m x E differences at once;
    this one takes two matrix products. They run in float64: each gradient is a difference of two
    sums, and in float32 (or TF32) little of it would be left for rows that are near each other.
    """

    @staticmethod
    def forward(ctx: Any, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        distances = torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist")
        ctx.save_for_backward(left, right, distances)
        return distances

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        left, right, distances = ctx.saved_tensors
        weight = (gradient.double() / distances).masked_fill_(distances == 0, 0)  # (..., n, m)
        to_left, to_right = ctx.needs_input_grad
        return (
            _weighted_differences(left, right, weight) if to_left else None,
            _weighted_differences(right, left, weight.mT) if to_right else None,
        )


def _weighted_differences(rows, others, weight):
    """sum_j weight_ij (rows_i - others_j), (..., n, E), in the type of `rows`.
    weight: (..., n, m) float64."""
    return (weight.sum(-1, keepdim=True) * rows - weight @ others.double()).to(rows.dtype)


def distance_relevance(
    left: torch.Tensor, right: torch.Tensor, distance: str = "l2"
) -> torch.Tensor:
    """exp(-||l_i - r_j|| / sigma), (..., B, B), with gradient 0 at distance 0;
    distances are exact.

    left, right: (..., B, E); distance: "l2", as released, or "l2sq": squared, as the paper writes
    it.
    """
    distances = _Distances.apply(left, right)
    return torch.exp(-(distances.square() if distance == "l2sq" else distances) / SIGMA)


def intra_modal(
    embeddings: torch.Tensor, distance: str = "l2", use_relevance: bool = True
) -> PairScores:
    """Scores of the instances of one modality, or of several at once. embeddings: (..., B, E).
    Returns `PairScores`, (..., B, B) each."""
    closeness = (embeddings @ embeddings.mT).detach()
    relevance = (
        distance_relevance(embeddings, embeddings, distance)
        if use_relevance
        else torch.zeros_like(closeness)
    )
    return PairScores(closeness, relevance)


def uniform_relation(embeddings: torch.Tensor, is_connected: bool) -> Relation:
    """A block with relevance 0, in which all pairs are connected or none. embeddings: (B, E)."""
    pairs = len(embeddings), len(embeddings)
    return Relation(
        embeddings.new_full(pairs, is_connected, dtype=torch.bool), embeddings.new_zeros(pairs)
    )


@torch.no_grad()
def fragment_matches(
    words: torch.Tensor,
    caption_lengths: torch.Tensor,
    regions: torch.Tensor,
    topk: int,
    region_lengths: torch.Tensor | None = None,
) -> tuple[Matches, Matches]:
    """The matches of the pieces of every caption with the regions of every image, in both
    directions (docs/method.md, section 4).

    words: (C, L, E); caption_lengths: (C,) on the CPU; regions: (B, R, E). Padded regions are
    included, as published, unless region_lengths, (B,) on the CPU, gives the number of true
    regions. A caption shorter than K adds its first padded pieces to the K largest matches. Works
    on blocks of captions and images, of the size that BLOCKS allows. Returns captions x images and
    images x captions.
    """
    # (R, B, E)
    limits, regions = (
        BLOCKS[words.device.type],
        F.normalize(regions.float(), dim=-1).transpose(0, 1),
    )
    is_padding = None  # (R, B), where padded regions take no part and there are any
    if region_lengths is not None and int(region_lengths.min()) < len(regions):
        is_padding = ~real_mask(region_lengths, len(regions), regions.device).T
        # what matches nothing adds nothing to a norm
        regions = regions.masked_fill(is_padding.unsqueeze(2), 0)
    found = []
    for first in range(0, len(words), limits.captions):
        some = slice(first, first + limits.captions)
        found.append(
            _matches_with_all_images(
                words[some], caption_lengths[some], regions, is_padding, topk, limits
            )
        )
    t2i, i2t = (Matches(*map(torch.cat, zip(*parts))) for parts in zip(*found))
    return t2i, Matches(*(pairs.transpose(0, 1) for pairs in i2t))


def _matches_with_all_images(words, lengths, regions, is_padding, topk, limits):
    """Both directions' `Matches`, captions first, of n captions: words (n, L, E).

    regions: (R, B, E), unit vectors; is_padding: (R, B) bool, the regions that take no part, or
    None.
    """
    num_images = regions.size(1)
    # (n,) pieces that are read of each caption
    selected = lengths.clamp(min=min(topk, words.size(1)))
    # (M, E)
    packed = Packing(selected, words.size(1), words.device).pack(F.normalize(words.float(), dim=-1))
    groups = caption_groups(lengths, selected, words.device, limits.padding)
    pairs = len(words), num_images
    directions = [
        Matches(packed.new_empty(pairs), packed.new_empty(*pairs, topk)) for _ in range(2)
    ]
    for images, product in image_blocks(packed, regions, limits.matches):
        unseen = None if is_padding is None else is_padding[:, images]
        match = F.leaky_relu_(product, NEGATIVE_SLOPE)  # (M, R, b)
        for group in groups:
            matched = _group_matches(match[group.rows], group, topk, unseen)
            for found, values in zip(directions, matched):
                found.mean[group.captions, images], found.largest[group.captions, images] = values
    return directions


def _group_matches(match, group, topk, is_padding=None):
    """Both directions' `Matches`, captions first, of n captions and b images.

    match: (m, R, b), packed; is_padding: (R, b) bool, the regions that take no part, or None.
    """
    if group.packing is None:
        match = match.unflatten(0, group.is_real.shape[:2])
    else:
        match = group.packing.unpack(match)  # (n, L, R, b), zero where nothing is selected
    # norms by hand: norm() over a dimension that is not the last takes fifty times as long
    squares = match.square()
    # of each piece: (n, L, 1, b)
    over_regions = squares.sum(2, keepdim=True).sqrt_().clamp_(min=SMALLEST_NORM)
    # of each region: (n, 1, R, b)
    over_pieces = squares.sum(1, keepdim=True).sqrt_().clamp_(min=SMALLEST_NORM)
    eligible = torch.div(match, over_regions, out=squares)
    if group.has_padding:
        eligible.masked_fill_(~group.is_real[..., None], -torch.inf)
    region_match = eligible.amax(1).transpose(1, 2)  # (n, b, R)

    match.div_(over_pieces)
    if is_padding is not None:
        match.masked_fill_(is_padding, -torch.inf)
    piece_match = match.amax(2)  # (n, L, b)
    mean = piece_match.masked_fill(~group.is_real, 0).sum(1) / group.lengths
    # (n, b, L)
    piece_match = piece_match.masked_fill(~group.is_selected, -torch.inf).transpose(1, 2)
    to_images = Matches(mean, _largest(piece_match, topk))
    if is_padding is None:
        return to_images, Matches(region_match.mean(2), _largest(region_match, topk))
    mean = region_match.masked_fill(is_padding.T, 0).sum(2) / (~is_padding).sum(0)
    return to_images, Matches(
        mean, _largest(region_match.masked_fill(is_padding.T, -torch.inf), topk)
    )


def _largest(matches, topk):
    """The K largest values of the last dimension, descending, filled with zeros to length K;
    -inf counts not."""
    largest = matches.topk(min(topk, matches.size(2)), dim=2).values
    return F.pad(largest.masked_fill(largest.isinf(), 0), (0, topk - largest.size(2)))


class CrossModalRelation(nn.Module):
    """Scores between captions and images from their fragments: closeness = mean match, relevance =
    MLP(K largest matches) + mean match.

    Without use_relevance, relevance is 0 and there are no MLPs.
    """

    def __init__(self, topk: int, use_relevance: bool = True) -> None:
        super().__init__()
        self.topk = topk
        self.mlp_t2i = self.mlp_i2t = None
        if use_relevance:
            self.mlp_t2i = nn.Sequential(nn.Linear(topk, topk), nn.ReLU(), nn.Linear(topk, 1))
            self.mlp_i2t = copy.deepcopy(self.mlp_t2i)  # the two directions start equal

    def forward(
        self,
        regions: torch.Tensor,
        words: torch.Tensor,
        caption_lengths: torch.Tensor,
        region_lengths: torch.Tensor | None = None,
    ) -> tuple[PairScores, PairScores]:
        """regions: (b, R, E); words: (b, L, E); lengths: see `fragment_matches`; all of this
        process's shard of the batch.

        A process matches its own captions with the images of all processes. Returns i2t and t2i,
        (B, B).
        """
        regions = distributed.gather(regions)
        region_lengths = None if region_lengths is None else distributed.gather(region_lengths)
        t2i, i2t = fragment_matches(words, caption_lengths, regions, self.topk, region_lengths)
        scores_i2t = PairScores(
            distributed.gather(i2t.mean.T).T,
            distributed.gather(_relevance(self.mlp_i2t, i2t).T).T,
        )
        scores_t2i = PairScores(
            distributed.gather(t2i.mean),
            distributed.gather(_relevance(self.mlp_t2i, t2i)),
        )
        return scores_i2t, scores_t2i


def _relevance(mlp, matches):
    """MLP(K largest matches) + mean match, or 0 without an MLP."""
    if mlp is None:
        return torch.zeros_like(matches.mean)
    return mlp(matches.largest).squeeze(-1) + matches.mean


class InstanceRelations(nn.Module):
    """The four relation blocks of a batch.

    relation: the blocks in use, "both", "intra" (i2i, t2t) or "inter" (i2t, t2i); nothing is
    connected in the others. Without use_relevance, relevance is 0; without use_connection, whole
    blocks are connected; with mask_padding, padded regions are left out.
    """

    def __init__(
        self,
        topk: int,
        threshold: float,
        relation: str = "both",
        use_relevance: bool = True,
        use_connection: bool = True,
        distance: str = "l2",
        mask_padding: bool = False,
    ) -> None:
        super().__init__()
        self.threshold, self.use_connection = threshold, use_connection
        self.use_relevance, self.distance, self.mask_padding = use_relevance, distance, mask_padding
        self.has_intra, self.has_inter = relation != "inter", relation != "intra"
        self.reads_fragments = self.has_inter and (use_relevance or use_connection)
        if self.reads_fragments:
            self.cross_modal = CrossModalRelation(topk, use_relevance)

    def forward(self, images: Encoded, captions: Encoded) -> Relations:
        """The relations of the whole batch. Fragments and lengths are those of this process's
        shard."""
        i2i = t2t = uniform_relation(images.embedding, is_connected=False)
        i2t = t2i = uniform_relation(images.embedding, is_connected=self.has_inter)
        if self.has_intra:
            both = torch.stack([images.embedding, captions.embedding])  # (2, B, E)
            scores = intra_modal(both, self.distance, self.use_relevance)
            scores_i2i, scores_t2t = (PairScores(*block) for block in zip(*scores))
            i2i, t2t = self.relate("i2i", scores_i2i), self.relate("t2t", scores_t2t)
        if self.reads_fragments:
            region_lengths = images.lengths if self.mask_padding else None
            scores_i2t, scores_t2i = self.cross_modal(
                images.fragments, captions.fragments, captions.lengths, region_lengths
            )
            i2t, t2i = self.relate("i2t", scores_i2t), self.relate("t2i", scores_t2i)
        return Relations(i2i, i2t, t2i, t2t)

    def relate(self, block: str, scores: PairScores) -> Relation:
        """The relation of a block, given by its name in `Relations`."""
        return Relation(self.connect(block, scores.closeness), scores.relevance)

    def connect(self, block: str, closeness: torch.Tensor) -> torch.Tensor:
        """The connection of a block, given by its name in `Relations`.

        closeness: (B, B) of the whole batch, the same in all processes. Returns (B, B) bool, or
        float weights, see `connection`.
        """
        if not self.use_connection:
            return torch.ones_like(closeness, dtype=torch.bool)
        return connection(closeness, self.threshold)

    def connected_share(self, relations: Relations) -> torch.Tensor:
        """The fraction of connected pairs in the blocks in use: a scalar, the same in all
        processes."""
        blocks = [relations.i2i, relations.t2t] * self.has_intra
        blocks += [relations.i2t, relations.t2i] * self.has_inter
        return (torch.stack([block.connection for block in blocks]) > 0).float().mean()


def regulariser(
    relations: Relations,
    image_embeddings: torch.Tensor,
    caption_embeddings: torch.Tensor,
    distance: str = "l2",
) -> torch.Tensor:
    """KL divergence of the learnt cross-modal relevance from that of the embeddings,
    both directions (section 4).

    Gradient reaches the relevance only. image_embeddings, caption_embeddings: (B, E); distance: see
    `distance_relevance`. Returns a scalar.
    """
    target = distance_relevance(image_embeddings.detach(), caption_embeddings.detach(), distance)
    given = torch.stack([target, target.T]).log_softmax(2)
    learnt = torch.stack([relations.i2t.relevance, relations.t2i.relevance]).log_softmax(2)
    return F.kl_div(given, learnt, reduction="sum", log_target=True) / len(target)
