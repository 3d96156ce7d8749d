"""Sequences without their padding: a batch's true positions as one matrix, and attention over them.

Everything in a transformer layer but attention works on one position at a time, so padding need not
take part. Only attention sees the padded form, and there it is a hundredth of the arithmetic.
"""

# N samples, n positions of the longest, M packed positions, E width, H heads

import torch
import torch.nn.functional as F

from .pooling import real_mask

ALIGNMENT = 8  # elements; attention on a GPU copies a bias whose rows begin anywhere else


class Packing:
    """Between the padded form (N, n, E) and the packed form (M, E):
    the first `lengths` positions of each sample.

    lengths: (N,) on the CPU; longest: n. The number of rows M is known to the host: nothing waits
    for the device.
    """

    def __init__(self, lengths: torch.Tensor, longest: int, device: torch.device | str) -> None:
        self.padded_shape = (len(lengths), longest)
        is_taken = real_mask(lengths, longest)
        self.is_taken = is_taken.to(device, non_blocking=True)  # (N, n)
        taken = is_taken.flatten().nonzero().squeeze(1)
        self.index = taken.to(device, non_blocking=True)  # (M,) into N*n

    def pack(self, padded: torch.Tensor) -> torch.Tensor:
        """(N, n, ...) to (M, ...)."""
        return padded.flatten(0, 1).index_select(0, self.index)

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """(M, ...) to (N, n, ...), zero beyond the packed positions."""
        padded = packed.new_zeros(self.padded_shape[0] * self.padded_shape[1], *packed.shape[1:])
        return padded.index_copy_(0, self.index, packed).unflatten(0, self.padded_shape)

    def attention(
        self, projected: torch.Tensor, bias: torch.Tensor, heads: int, dropout: float = 0.0
    ) -> torch.Tensor:
        """Multi-head attention inside each sample.

        projected: (M, 3E), queries, keys and values side by side; bias: (N, 1, 1, n), see
        `key_bias`. Returns (M, E).
        """
        parts = self.unpack(projected).unflatten(2, (3, heads, -1)).unbind(2)
        query, key, value = (part.transpose(1, 2) for part in parts)  # (N, H, n, E/H)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
        return self.pack(mixed.transpose(1, 2).flatten(2))


def key_bias(is_key: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What attention adds to its logits: 0 where there is a key, -inf elsewhere.

    A bool mask would be turned into this in every layer. is_key: (N, n) bool; dtype: that of
    `attention_dtype`. Returns (N, 1, 1, n).
    """
    longest = is_key.size(1)
    width = -(-longest // ALIGNMENT) * ALIGNMENT
    bias = torch.zeros(len(is_key), 1, 1, width, dtype=dtype, device=is_key.device)
    return bias[..., :longest].masked_fill_(~is_key[:, None, None], -torch.inf)


def attention_dtype(hidden: torch.Tensor) -> torch.dtype:
    """The type in which attention over `hidden` runs: its own, or that of autocast."""
    kind = hidden.device.type
    is_cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if is_cast else hidden.dtype
