"""Fragment-level relations inside one sample: a transformer over its regions or words,
with residual pooling.

Equations: docs/method.md, section 3. One module serves the image and the text encoder, and the
baselines that pool without a transformer.
"""

# N samples, n fragments of the longest, M true fragments in all, E embedding

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from .packing import Packing, attention_dtype, key_bias
from .pooling import AttentionPooling, GeneralizedPooling, masked_mean, max_k_mean

Pooling = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # fragments, lengths
WITHOUT_WEIGHTS: dict[str, Pooling] = {
    "maxk": max_k_mean,
    "mean": masked_mean,
    "max": functools.partial(max_k_mean, k=1),
}


def transformer_layer(dim: int, heads: int, dropout: float) -> nn.TransformerEncoderLayer:
    """The paper's transformer layer, of fragments and instances alike: post-norm,
    feed-forward width E, ReLU."""
    return nn.TransformerEncoderLayer(
        dim, heads, dim_feedforward=dim, dropout=dropout, batch_first=True
    )


def after_attention(
    layer: nn.TransformerEncoderLayer, nodes: torch.Tensor, attended: torch.Tensor
) -> torch.Tensor:
    """The rest of a transformer layer after its attention. nodes, attended: (..., E). Returns
    (..., E)."""
    nodes = layer.norm1(nodes + layer.dropout1(attended))
    widened = layer.dropout(layer.activation(layer.linear1(nodes)))
    return layer.norm2(nodes + layer.dropout2(layer.linear2(widened)))


class FragmentRelation(nn.Module):
    """Pools fragments into one vector: v = lambda v_res + (1 - lambda) v_rel
    (docs/method.md, section 3).

    v_res is the pooling of the fragments, as published the mean of the two largest values of each
    feature; v_rel is the mean of the transformer's output. pooling: one of POOLINGS; without
    "+relation" there is no transformer, v = v_res. pooling_dropout: of the fragments that
    "attention" pools.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        dropout: float = 0.1,
        residual_weight: float = 0.8,
        pooling: str = "maxk+relation",
        pooling_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.residual_weight = residual_weight
        name, _, relation = pooling.partition("+")
        self.layer = transformer_layer(dim, heads, dropout) if relation else None
        if name == "gpo":
            self.pool: Pooling = GeneralizedPooling()
        elif name == "attention":
            self.pool = AttentionPooling(dim, pooling_dropout)
        else:
            self.pool = WITHOUT_WEIGHTS[name]

    def forward(self, fragments: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """fragments: (N, n, E), padded; lengths: (N,) on the CPU. Returns (N, E),
        not normalised."""
        residual = self.pool(fragments, lengths)
        if self.layer is None:
            return residual
        counted = lengths.to(fragments.device, non_blocking=True).unsqueeze(1)
        related = self.relate(fragments, lengths).sum(1) / counted
        return self.residual_weight * residual + (1 - self.residual_weight) * related

    def relate(self, fragments: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """The transformer's output for the true fragments, (N, n, E), zero beyond them."""
        packing = Packing(lengths, fragments.size(1), fragments.device)
        return packing.unpack(_transform(self.layer, packing.pack(fragments), packing))


def _transform(layer, packed, packing):
    """What `layer(fragments, src_key_padding_mask=...)` computes, on the true fragments alone,
    (M, E)."""
    attention = layer.self_attn
    bias = key_bias(packing.is_taken, attention_dtype(packed))
    projected = F.linear(packed, attention.in_proj_weight, attention.in_proj_bias)
    dropout = attention.dropout if layer.training else 0.0
    mixed = attention.out_proj(packing.attention(projected, bias, attention.num_heads, dropout))
    return after_attention(layer, packed, mixed)
