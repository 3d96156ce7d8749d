"""Fragment-level relations inside one sample: a transformer over its regions or words, with residual pooling.

SPEC section 3; one module serves the image and the text encoder.
"""

# N samples, n fragments of the longest, E embedding

from torch import nn

from lib.pooling import length_mask, masked_mean, max_k_mean


def transformer_layer(dim, heads, dropout):
    """The paper's transformer layer, of fragments and instances alike: post-norm, feed-forward width E, ReLU."""
    return nn.TransformerEncoderLayer(dim, heads, dim_feedforward=dim, dropout=dropout, batch_first=True)


class FragmentRelation(nn.Module):
    """Pools fragments into one vector: v = lambda v_res + (1 - lambda) v_rel (SPEC section 3).

    v_res is the mean of the two largest values of each feature, v_rel the mean of the transformer's output.
    """

    def __init__(self, dim, heads, dropout=0.1, residual_weight=0.8):
        super().__init__()
        self.residual_weight = residual_weight
        self.layer = transformer_layer(dim, heads, dropout)

    def forward(self, fragments, lengths):
        """fragments: (N, n, E), padded; lengths: (N,) on the CPU. Returns (N, E), not normalised."""
        is_padding = ~length_mask(lengths, fragments.size(1), fragments.device)
        related = self.layer(fragments, src_key_padding_mask=is_padding)  # (N, n, E)
        residual = max_k_mean(fragments, lengths)
        return self.residual_weight * residual + (1 - self.residual_weight) * masked_mean(related, lengths)
