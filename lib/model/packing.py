"""Sequences without their padding: a batch's true positions as one matrix, and attention over them.

Everything in a transformer layer but attention works on one position at a time, so padding need not
take part. Only attention sees the padded form, and there it is a hundredth of the arithmetic.
"""

# N samples, n positions of the longest, M packed positions, E width, H heads

import torch.nn.functional as F

from .pooling import real_mask


class Packing:
    """Between the padded form (N, n, E) and the packed form (M, E):
    the first `lengths` positions of each sample.

    lengths: (N,) on the CPU; longest: n. The number of rows M is known to the host: nothing waits
    for the device.
    """

    def __init__(self, lengths, longest, device):
        self.padded_shape = (len(lengths), longest)
        taken = real_mask(lengths, longest).flatten().nonzero().squeeze(1)
        self.index = taken.to(device, non_blocking=True)  # (M,) into N*n

    def pack(self, padded):
        """(N, n, ...) to (M, ...)."""
        return padded.flatten(0, 1).index_select(0, self.index)

    def unpack(self, packed):
        """(M, ...) to (N, n, ...), zero beyond the packed positions."""
        padded = packed.new_zeros(self.padded_shape[0] * self.padded_shape[1], *packed.shape[1:])
        return padded.index_copy(0, self.index, packed).unflatten(0, self.padded_shape)

    def attention(self, projected, is_key, heads, dropout=0.0):
        """Multi-head attention inside each sample.

        projected: (M, 3E), queries, keys and values side by side; is_key: (N, n) bool. Returns (M,
        E).
        """
        # (N, H, n, E/H)
        query, key, value = (
            self.unpack(projected).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        )
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=is_key[:, None, None], dropout_p=dropout
        )
        return self.pack(mixed.transpose(1, 2).flatten(2))
