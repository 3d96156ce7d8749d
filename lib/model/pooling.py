"""Pooling over the true fragments of padded samples, and L2 normalisation
(docs/method.md, section 3).

Lengths stay on the CPU, even if the fragments are on a GPU: they determine how the work is divided,
and reading them from a GPU would synchronise.
"""

# N samples, n fragments of the longest of them, E embedding

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


def real_mask(
    lengths: torch.Tensor, longest: int, device: torch.device | str | None = None
) -> torch.Tensor:
    """True where a position holds a real fragment.

    lengths: (N,) true lengths, on the CPU; longest: padded length n. Returns is_real, (N, n) bool,
    on `device`.
    """
    return torch.arange(longest, device=device) < lengths.to(device, non_blocking=True).unsqueeze(1)


def length_groups(lengths: torch.Tensor, most_padding: int = 64) -> list[tuple[slice, int]]:
    """Cut a batch into runs of samples that need little padding among themselves.

    lengths: (N,) on the CPU, best sorted; most_padding: positions of padding at which a run ends.
    Returns a list of (slice of the samples, length of their longest).
    """
    groups, start, padding, longest = [], 0, 0, 0
    for index, length in enumerate(lengths.tolist()):
        grown = max(length, longest)
        padding += grown - length + (index - start) * (grown - longest)
        if padding > most_padding and index > start:
            groups.append((slice(start, index), longest))
            start, padding, grown = index, 0, length
        longest = grown
    groups.append((slice(start, len(lengths)), longest))
    return groups


def masked_mean(fragments: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Mean over the true fragments. fragments: (N, n, E); lengths: (N,), at least 1. Returns
    (N, E)."""
    is_real = real_mask(lengths, fragments.size(1), fragments.device).unsqueeze(-1)
    counted = lengths.to(fragments.device, non_blocking=True).unsqueeze(1)
    return fragments.masked_fill(~is_real, 0).sum(1) / counted


def max_k_mean(fragments: torch.Tensor, lengths: torch.Tensor, k: int = 2) -> torch.Tensor:
    """Mean of the k largest values of each feature over the true fragments, or of all of them in
    samples with fewer than k.

    fragments: (N, n, E); lengths: (N,), at least 1. Returns (N, E). This is v_res of
    docs/method.md, section 3.
    """
    device = fragments.device
    is_real = real_mask(lengths, fragments.size(1), device).unsqueeze(-1)
    k = min(k, fragments.size(1))
    largest = fragments.masked_fill(~is_real, -torch.inf).topk(k, dim=1).values  # (N, k, E)
    counted = lengths.clamp(max=k)
    is_counted = real_mask(counted, k, device).unsqueeze(-1)
    return largest.masked_fill(~is_counted, 0).sum(1) / counted.to(
        device, non_blocking=True
    ).unsqueeze(1)


class GeneralizedPooling(nn.Module):
    """GPO: a weighted sum of each feature's values in descending order, the weights learnt
    (Chen et al., CVPR 2021).

    v[d] = sum over ranks k of theta_k times the k-th largest of h_1[d]..h_n[d]. theta is a softmax
    over the n ranks of the outputs of a bidirectional GRU, which reads their sinusoidal encodings,
    so it depends on n only: all samples of a length share it. Mean, max and the mean of the k
    largest are special cases.
    """

    def __init__(self, encoding_size: int = 32, hidden_size: int = 32) -> None:
        super().__init__()
        self.encoding_size = encoding_size
        self.gru = nn.GRU(encoding_size, hidden_size, batch_first=True, bidirectional=True)
        self.score = nn.Linear(2 * hidden_size, 1, bias=False)  # a bias would cancel in the softmax

    def forward(self, fragments: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """fragments: (N, n, E), padded; lengths: (N,) on the CPU, at least 1. Returns (N, E)."""
        is_real = real_mask(lengths, fragments.size(1), fragments.device).unsqueeze(-1)
        ranked = fragments.masked_fill(~is_real, -torch.inf).sort(dim=1, descending=True).values
        weights = self.weights(lengths, fragments.size(1)).unsqueeze(-1)  # (N, n, 1)
        return (weights * ranked.masked_fill(~is_real, 0)).sum(1)

    def weights(self, lengths: torch.Tensor, longest: int) -> torch.Tensor:
        """theta of every sample, (N, n), zero beyond its length. The GRU runs once per distinct
        length."""
        device = self.score.weight.device
        distinct, which = lengths.unique(return_inverse=True)
        # longest first, as packing wants them
        distinct, which = distinct.flip(0), len(distinct) - 1 - which
        encodings = rank_encodings(longest, self.encoding_size, device).expand(
            len(distinct), -1, -1
        )
        states = self.gru(pack_padded_sequence(encodings, distinct, batch_first=True))[0]
        states = pad_packed_sequence(states, batch_first=True, total_length=longest)[0]
        scores = self.score(states).squeeze(-1).float()
        theta = scores.masked_fill(~real_mask(distinct, longest, device), -torch.inf).softmax(1)
        return theta.index_select(0, which.to(device, non_blocking=True))


class AttentionPooling(nn.Module):
    """A softmax over the fragments for each dimension (ESA; Zhu et al., 2023):
    v[d] = sum over fragments r of p_r[d] x_r[d], with p = softmax over r of A x_r + a."""

    def __init__(self, dim: int, dropout: float = 0.0) -> None:
        """dropout: of the fragments, in training."""
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Linear(dim, dim)

    def forward(self, fragments: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """fragments: (N, n, E), padded; lengths: (N,) on the CPU, at least 1. Returns (N, E)."""
        is_real = real_mask(lengths, fragments.size(1), fragments.device).unsqueeze(-1)
        fragments = self.dropout(fragments).masked_fill(~is_real, 0)
        weights = self.score(fragments).float().masked_fill(~is_real, -torch.inf).softmax(1)
        return (weights * fragments).sum(1)


def rank_encodings(count: int, size: int, device: torch.device | str | None = None) -> torch.Tensor:
    """Sinusoidal encodings of the ranks 1..count: sin and cos of rank / 10000^(2j / size).
    Returns (count, size)."""
    ranks = torch.arange(1, count + 1, device=device).unsqueeze(1)
    angles = ranks * 10000 ** (-torch.arange(0, size, 2, device=device) / size)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def l2_normalise(vectors: torch.Tensor) -> torch.Tensor:
    """v / (||v|| + 1e-8) over the last dimension: the published form,
    with the constant outside the norm."""
    return vectors / (vectors.norm(dim=-1, keepdim=True) + 1e-8)
