"""Pooling over the true fragments of padded samples, and L2 normalisation (SPEC section 3)."""

# N samples, n fragments of the longest of them, E embedding

import torch


def length_mask(lengths, longest):
    """True where a position holds a real fragment.

    lengths: (N,) true lengths; longest: padded length n. Returns is_real, (N, n) bool.
    """
    return torch.arange(longest, device=lengths.device) < lengths.unsqueeze(1)


def masked_mean(fragments, lengths):
    """Mean over the true fragments. fragments: (N, n, E); lengths: (N,), at least 1. Returns (N, E)."""
    is_real = length_mask(lengths, fragments.size(1)).unsqueeze(-1)
    return fragments.masked_fill(~is_real, 0).sum(1) / lengths.unsqueeze(1)


def max_k_mean(fragments, lengths, k=2):
    """Mean of the k largest values of each feature over the true fragments, of fewer where a sample is shorter.

    fragments: (N, n, E); lengths: (N,), at least 1. Returns (N, E). This is v_res of SPEC section 3.
    """
    is_real = length_mask(lengths, fragments.size(1)).unsqueeze(-1)
    k = min(k, fragments.size(1))
    largest = fragments.masked_fill(~is_real, -torch.inf).topk(k, dim=1).values  # (N, k, E)
    counted = lengths.clamp(max=k)
    is_counted = length_mask(counted, k).unsqueeze(-1)
    return largest.masked_fill(~is_counted, 0).sum(1) / counted.unsqueeze(1)


def l2_normalise(vectors):
    """v / (||v|| + 1e-8) over the last dimension: the published form, with the constant outside the norm."""
    return vectors / (vectors.norm(dim=-1, keepdim=True) + 1e-8)
