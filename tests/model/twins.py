"""Cross-attention scores a pair at a time, with attended vectors: the block form equals them."""

import torch
import torch.nn.functional as F


def normalised(match, kind, dim):
    """match along the queries, dimension `dim`, by the definition of each kind."""
    if kind.startswith("clipped"):
        match = torch.where(match > 0, match, 0.1 * match)
    if kind.endswith("l2norm"):
        return match / (match.pow(2).sum(dim, keepdim=True).sqrt() + 1e-8)
    if kind.endswith("l1norm"):
        return match / (match.abs().sum(dim, keepdim=True) + 1e-8)
    return match.softmax(dim) if kind == "softmax" else match


def aggregated(values, aggregation, temperature):
    if aggregation == "lse":
        return (values * temperature).exp().sum().log() / temperature
    return dict(mean=torch.mean, sum=torch.sum, max=torch.max)[aggregation](values)


def scan(regions, words, *, cross_attention, aggregation, attention_temperature, lse_temperature,
         match_norm):  # fmt: skip
    """SCAN's score of one pair: regions (r, E), words (n, E), none padded."""
    query, context = (words, regions) if cross_attention == "t2i" else (regions, words)
    match = normalised(context @ query.T, match_norm, dim=1)  # (k, q)
    attended = (attention_temperature * match).softmax(0).T @ context  # (q, E)
    cosines = F.cosine_similarity(query, attended, dim=1, eps=1e-8)
    return aggregated(cosines, aggregation, lse_temperature)


def chan(regions, words, *, aggregation, lse_temperature):
    """CHAN's score of one pair."""
    return aggregated((words @ regions.T).max(1).values, aggregation, lse_temperature)


def naaf_terms(regions, words, threshold, is_test=False):
    """f, g and h of each word of one pair: (n,) each."""
    match = words @ regions.T  # (n, r)
    positive = torch.where(match > threshold, (20 * (match - threshold)).exp(), 0)
    attended = positive / (positive.sum(1, keepdim=True) + 1e-8) @ regions
    f = (words * attended).sum(1) / attended.norm(dim=1).clamp(min=1e-8)
    g = ((20 * normalised(match, "clipped_l2norm", dim=0)).softmax(1) * match).sum(1)
    margin = match.max(1).values - threshold
    deciding = (5 * words @ words.T).softmax(1) @ margin if is_test else margin
    return f, g, torch.where(deciding < 0, margin, 0)


def naaf(regions, words, *, threshold, is_test=False):
    """NAAF's score of one pair."""
    return sum(naaf_terms(regions, words, threshold, is_test)).mean()


def all_pairs(score, regions, words, region_lengths, caption_lengths, **options):
    """The score of every pair from its true fragments: (B, C)."""
    return torch.stack([
        torch.stack([
            score(image[:count], caption[:length], **options)
            for caption, length in zip(words, caption_lengths.tolist())
        ])
        for image, count in zip(regions, region_lengths.tolist())
    ])  # fmt: skip
