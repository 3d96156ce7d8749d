"""Pooling over the true fragments of padded samples, and L2 normalisation (SPEC section 3).

Lengths stay on the CPU wherever the fragments are: they say how to cut the work, and asking a GPU for them would wait.
"""

# N samples, n fragments of the longest of them, E embedding

import torch


def length_mask(lengths, longest, device=None):
    """True where a position holds a real fragment.

    lengths: (N,) true lengths, on the CPU; longest: padded length n. Returns is_real, (N, n) bool, on `device`.
    """
    return torch.arange(longest, device=device) < lengths.to(device, non_blocking=True).unsqueeze(1)


def length_groups(lengths, most_padding=64):
    """Cut a batch into runs of samples that need little padding among themselves.

    lengths: (N,) on the CPU, best sorted; most_padding: positions of padding at which a run ends. Returns a list of
    (slice of the samples, length of their longest).
    """
    groups, start, padding, longest = [], 0, 0, 0
    lengths = lengths.tolist()
    for index, length in enumerate(lengths):
        grown = max(length, longest)
        padding += grown - length + (index - start) * (grown - longest)
        if padding > most_padding and index > start:
            groups.append((slice(start, index), longest))
            start, padding, grown = index, 0, length
        longest = grown
    groups.append((slice(start, len(lengths)), longest))
    return groups


def masked_mean(fragments, lengths):
    """Mean over the true fragments. fragments: (N, n, E); lengths: (N,), at least 1. Returns (N, E)."""
    is_real = length_mask(lengths, fragments.size(1), fragments.device).unsqueeze(-1)
    counted = lengths.to(fragments.device, non_blocking=True).unsqueeze(1)
    return fragments.masked_fill(~is_real, 0).sum(1) / counted


def max_k_mean(fragments, lengths, k=2):
    """Mean of the k largest values of each feature over the true fragments, of fewer where a sample is shorter.

    fragments: (N, n, E); lengths: (N,), at least 1. Returns (N, E). This is v_res of SPEC section 3.
    """
    device = fragments.device
    is_real = length_mask(lengths, fragments.size(1), device).unsqueeze(-1)
    k = min(k, fragments.size(1))
    largest = fragments.masked_fill(~is_real, -torch.inf).topk(k, dim=1).values  # (N, k, E)
    counted = lengths.clamp(max=k)
    is_counted = length_mask(counted, k, device).unsqueeze(-1)
    return largest.masked_fill(~is_counted, 0).sum(1) / counted.to(device, non_blocking=True).unsqueeze(1)


def l2_normalise(vectors):
    """v / (||v|| + 1e-8) over the last dimension: the published form, with the constant outside the norm."""
    return vectors / (vectors.norm(dim=-1, keepdim=True) + 1e-8)
