"""Scores of image-caption pairs by cross-attention between regions and words: SCAN
(Lee et al., ECCV 2018) and CHAN (Pan et al., CVPR 2023).

With the Gram matrix G of the attended fragments, the cosine of a query with its attended vector is
sum(alpha s) / sqrt(alpha' G alpha): no attended vector is formed. Departures: padding takes no
part; a cosine never leaves [-1, 1], which rounding could otherwise cause near the zero vector.
"""

# C captions, B images, R regions, L words, E embedding
# of a block: n captions, b images; Q queries, words or regions

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from .pair_scores import PairBlock, clean_fragments, score_pairs

NEGATIVE_SLOPE = 0.1
EPSILON = 1e-8
# below it a square counts as zero, and its root has no gradient
SMALLEST_SQUARE = 1e-30
# dimensions of (n, L, R, b)
WORDS, REGIONS = 1, 2

Matches: TypeAlias = torch.Tensor
Mask: TypeAlias = torch.Tensor | None


def safe_sqrt(squares: torch.Tensor) -> torch.Tensor:
    """The square root, with gradient 0 at and below 0."""
    return squares.clamp(min=SMALLEST_SQUARE).sqrt()


def _l2(match, dim, scale):
    return match * (scale / (safe_sqrt(match.square().sum(dim, keepdim=True)) + EPSILON))


def _l1(match, dim, scale):
    return match * (scale / (match.abs().sum(dim, keepdim=True) + EPSILON))


def _clip(match):
    return F.leaky_relu(match, NEGATIVE_SLOPE)


def mask(values: torch.Tensor, is_padding: Mask, value: float = -torch.inf) -> torch.Tensor:
    """`values` with `value` where there is padding; is_padding: bool, or None: nowhere."""
    return values if is_padding is None else values.masked_fill(is_padding, value)


# Each normalises the matches along the queries, for each context fragment, and scales the result.
# Matches of padding are zero, so only a softmax needs the mask.
MATCH_NORMS: dict[str, Callable[[Matches, int, Mask, float], Matches]] = {
    "clipped_l2norm": lambda match, dim, is_padding, scale: _l2(_clip(match), dim, scale),
    "l2norm": lambda match, dim, is_padding, scale: _l2(match, dim, scale),
    "clipped_l1norm": lambda match, dim, is_padding, scale: _l1(_clip(match), dim, scale),
    "l1norm": lambda match, dim, is_padding, scale: _l1(match, dim, scale),
    "clipped": lambda match, dim, is_padding, scale: _clip(match) * scale,
    "softmax": lambda match, dim, is_padding, scale: mask(match, is_padding).softmax(dim) * scale,
    "no_norm": lambda match, dim, is_padding, scale: match * scale,
}
AGGREGATIONS = ("mean", "lse", "max", "sum")
DIRECTIONS = ("t2i", "i2t")


def gram(fragments: torch.Tensor) -> torch.Tensor:
    """Inner products inside each sample: (N, n, E) to (N, n, n)."""
    with torch.autocast(fragments.device.type, enabled=False):
        return fragments @ fragments.mT


def norms(fragments: torch.Tensor) -> torch.Tensor:
    """Lengths of the fragments: (N, n, E) to (N, n)."""
    return fragments.norm(dim=2)


class _QuadraticForm(torch.autograd.Function):
    """alpha' G alpha of every query: weights (N, k, q) with dim 1 or (N, q, k) with dim 2, and
    gram (N, k, k), symmetric, to (N, q). The gradient of the weights is 2 G alpha, which is there
    already."""

    @staticmethod
    def forward(ctx, weights, gram, dim):
        product = gram @ weights if dim == 1 else weights @ gram
        if not any(ctx.needs_input_grad):
            return product.mul_(weights).sum(dim)
        ctx.save_for_backward(weights, product)
        ctx.dim = dim
        return (product * weights).sum(dim)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        weights, product = ctx.saved_tensors
        gradient, to_gram = gradient.unsqueeze(ctx.dim), None
        if ctx.needs_input_grad[1]:
            scaled = weights * gradient
            to_gram = scaled @ weights.mT if ctx.dim == 1 else scaled.mT @ weights
        return product * (2 * gradient), to_gram, None


def region_form(weights: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """alpha' G alpha of every word with every image: weights (n, L, R, b), gram (b, R, R), to
    (n, L, b)."""
    rows = weights.flatten(0, 2).T.contiguous().unflatten(1, (-1, gram.size(1)))  # (b, n*L, R)
    return _QuadraticForm.apply(rows, gram, 2).T.unflatten(0, weights.shape[:2])


def word_form(weights: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """alpha' G alpha of every region with every caption: weights (n, L, R, b), gram (n, L, L), to
    (n, R, b)."""
    return _QuadraticForm.apply(weights.flatten(2), gram, 1).unflatten(1, weights.shape[2:])


def attend(
    block: PairBlock, context: int, temperature: float, match_norm: str = "clipped_l2norm"
) -> torch.Tensor:
    """Weights of the context fragments for each query, (n, L, R, b). context: WORDS or REGIONS."""
    padded = {WORDS: block.padded_words, REGIONS: block.padded_regions}
    query = REGIONS if context == WORDS else WORDS
    logits = MATCH_NORMS[match_norm](block.match, query, padded[query], temperature)
    return mask(logits, padded[context]).softmax(context)


def cosine(dot: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """dot / lengths, as far as lengths allow. lengths: products of norms."""
    return (dot / lengths.clamp(min=EPSILON)).clamp(-1, 1)


def aggregate(
    values: torch.Tensor,
    is_padding: Mask,
    counts: torch.Tensor,
    aggregation: str,
    temperature: float,
) -> torch.Tensor:
    """One score from those of the queries. values: (n, Q, b); is_padding: of the same shape or
    broadcast; counts: true queries, broadcast to (n, b); temperature: of "lse". Returns (n, b)."""
    if aggregation == "max":
        return mask(values, is_padding).amax(1)
    if aggregation == "lse":
        return mask(values * temperature, is_padding).logsumexp(1) / temperature
    total = mask(values, is_padding, 0).sum(1)
    return total / counts if aggregation == "mean" else total


def aggregate_words(
    block: PairBlock, values: torch.Tensor, aggregation: str = "mean", temperature: float = 1.0
) -> torch.Tensor:
    """`aggregate` where words are the queries: (n, L, b) to (n, b)."""
    padded = None if block.padded_words is None else block.padded_words.squeeze(3)
    return aggregate(values, padded, block.num_words, aggregation, temperature)


def _scan_t2i(block, match_norm, attention_temperature, aggregation, lse_temperature):
    (word_norms,), (region_gram,) = block.caption_side, block.image_side
    weights = attend(block, REGIONS, attention_temperature, match_norm)
    dot = (weights * block.match).sum(REGIONS)  # (n, L, b)
    attended = safe_sqrt(region_form(weights, region_gram))
    cosines = cosine(dot, attended * word_norms.unsqueeze(2))
    return aggregate_words(block, cosines, aggregation, lse_temperature)


def _scan_i2t(block, match_norm, attention_temperature, aggregation, lse_temperature):
    (word_gram,), (region_norms,) = block.caption_side, block.image_side
    weights = attend(block, WORDS, attention_temperature, match_norm)
    dot = (weights * block.match).sum(WORDS)  # (n, R, b)
    attended = safe_sqrt(word_form(weights, word_gram))
    cosines = cosine(dot, attended * region_norms.T)
    return aggregate(cosines, block.padded_regions, block.num_regions, aggregation, lse_temperature)


def scan_scores(
    regions: torch.Tensor,
    words: torch.Tensor,
    region_lengths: torch.Tensor | None,
    caption_lengths: torch.Tensor,
    *,
    cross_attention: str = "t2i",
    aggregation: str = "mean",
    attention_temperature: float = 9.0,
    lse_temperature: float = 6.0,
    match_norm: str = "clipped_l2norm",
) -> torch.Tensor:
    """SCAN's scores of all images with all captions, (B, C), with gradient.

    regions: (B, R, E); words: (C, L, E), padded; region_lengths: (B,) on the CPU, or None: all R
    are true; caption_lengths: (C,) on the CPU. cross_attention: "t2i", words attend to regions, or
    "i2t". aggregation: of the queries, one of AGGREGATIONS; match_norm: one of MATCH_NORMS.
    """
    fragments = clean_fragments(regions, words, region_lengths, caption_lengths)
    options = dict(
        match_norm=match_norm,
        attention_temperature=attention_temperature,
        aggregation=aggregation,
        lse_temperature=lse_temperature,
    )
    if cross_attention == "t2i":
        sides = (norms(fragments.words),), (gram(fragments.regions),)
        return score_pairs(partial(_scan_t2i, **options), fragments, *sides)
    sides = (gram(fragments.words),), (norms(fragments.regions),)
    return score_pairs(partial(_scan_i2t, **options), fragments, *sides)


def _chan(block, aggregation, lse_temperature):
    best = mask(block.match, block.padded_regions).amax(REGIONS)  # (n, L, b)
    return aggregate_words(block, best, aggregation, lse_temperature)


def chan_scores(
    regions: torch.Tensor,
    words: torch.Tensor,
    region_lengths: torch.Tensor | None,
    caption_lengths: torch.Tensor,
    *,
    aggregation: str = "mean",
    lse_temperature: float = 10.0,
) -> torch.Tensor:
    """CHAN's scores of all images with all captions, (B, C): the best match of each word,
    aggregated. Inputs as those of `scan_scores`.

    With "lse" the published code leaves the factor 1 / lse_temperature out; here it is in.
    """
    fragments = clean_fragments(regions, words, region_lengths, caption_lengths)
    score = partial(_chan, aggregation=aggregation, lse_temperature=lse_temperature)
    return score_pairs(score, fragments)
