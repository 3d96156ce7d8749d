"""The image encoder and the text encoders. All return `Encoded` (docs/method.md, section 3)."""

# N samples, R regions, D region feature size, L pieces, E embedding

from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from transformers import BertModel

from ..system.distributed import BatchNorm
from .bert import encode_packed
from .fragment import FragmentRelation
from .packing import Packing
from .pooling import l2_normalise


class Encoded(NamedTuple):
    """What an encoder returns for N samples of at most n fragments.

    embedding (N, E), which retrieval uses; unnormalised (N, E), the same before L2 normalisation;
    fragments (N, n, E) before the transformer, padded positions included, without gradient; lengths
    (N,) on the CPU. Without pooling there is no embedding, and the fragments are L2-normalised and
    have a gradient. With two views of each image, embedding and unnormalised are of the first,
    second_view (N, E) is the embedding of the second, and the fragments are of all regions.
    """

    embedding: torch.Tensor | None
    unnormalised: torch.Tensor | None
    fragments: torch.Tensor
    lengths: torch.Tensor
    second_view: torch.Tensor | None = None


class ImageEncoder(nn.Module):
    """Region features to image embeddings: a linear map plus an MLP for each region, then fragment
    relations. pooling: None for fragments only; mlp: False for the linear map only."""

    def __init__(
        self,
        region_dim: int,
        dim: int,
        heads: int,
        dropout: float = 0.1,
        residual_weight: float = 0.8,
        pooling: str | None = "maxk+relation",
        normalise: bool = True,
        mask_padding: bool = False,
        mlp: bool = True,
    ) -> None:
        super().__init__()
        self.normalise, self.mask_padding = normalise, mask_padding
        self.projection = nn.Linear(region_dim, dim)
        first, last = nn.Linear(region_dim, dim // 2), nn.Linear(dim // 2, dim)
        self.mlp = nn.Sequential(first, BatchNorm(dim // 2), nn.ReLU(), last) if mlp else None
        for linear in (self.projection, first, last):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.fragment_relation = (
            FragmentRelation(dim, heads, dropout, residual_weight, pooling) if pooling else None
        )

    def forward(
        self, regions: torch.Tensor, lengths: torch.Tensor, views: torch.Tensor | None = None
    ) -> Encoded:
        """regions: (N, R, D), zero rows beyond each length; lengths: (N,) on the CPU; views:
        (N, 2, R) bool on the CPU, the regions that each view sees, or None. Returns `Encoded`.

        Batch norm includes padded rows, as published. With `mask_padding` it does not, and their
        fragments are zero. Fragments are computed once, and pooled for each view.
        """
        if self.mask_padding:
            packing = Packing(lengths, regions.size(1), regions.device)
            fragments = packing.unpack(self.project(packing.pack(regions)))  # (N, R, E)
        else:
            # (N, R, E)
            fragments = self.project(regions.flatten(0, 1)).unflatten(0, regions.shape[:2])
        if views is None:
            return _encoded(self, fragments, lengths)
        first, second = (_encoded(self, *_select(fragments, seen)) for seen in views.unbind(1))
        return first._replace(
            fragments=fragments.detach(), lengths=lengths, second_view=second.embedding
        )

    def project(self, rows: torch.Tensor) -> torch.Tensor:
        """Fragments of the rows that batch norm includes. rows: (M, D). Returns (M, E)."""
        return self.projection(rows) + self.mlp(rows) if self.mlp else self.projection(rows)


class TextEncoder(nn.Module):
    """Word pieces to caption embeddings: BERT, a linear map, then fragment relations.

    bert: a transformers BertModel without its pooler; its hidden size is taken from its
    configuration.
    """

    def __init__(
        self,
        bert: BertModel,
        dim: int,
        heads: int,
        dropout: float = 0.1,
        residual_weight: float = 0.8,
        pooling: str | None = "maxk+relation",
        normalise: bool = True,
    ) -> None:
        super().__init__()
        self.normalise = normalise
        self.bert = bert
        self.projection = nn.Linear(bert.config.hidden_size, dim)
        self.fragment_relation = (
            FragmentRelation(dim, heads, dropout, residual_weight, pooling, pooling_dropout=dropout)
            if pooling
            else None
        )

    def forward(
        self, pieces: torch.Tensor, lengths: torch.Tensor, least_pieces: int | None = None
    ) -> Encoded:
        """pieces: (N, L) ids, 0 beyond each length; lengths: (N,) on the CPU. Returns `Encoded`.

        Fragments of padding are computed up to position `least_pieces` (L if it is None); beyond
        it they are zero.
        """
        longest = pieces.size(1)
        least = longest if least_pieces is None else min(least_pieces, longest)
        packing = Packing(lengths.clamp(min=least), longest, pieces.device)
        # (N, L, E)
        fragments = packing.unpack(self.projection(encode_packed(self.bert, pieces, packing)))
        return _encoded(self, fragments, lengths)


class RecurrentTextEncoder(nn.Module):
    """Words to caption embeddings: a bidirectional GRU, its two directions averaged,
    then fragment relations.

    The text encoder of VSE++, SCAN and VSRN. words: the nn.Embedding of a vocabulary.
    """

    def __init__(
        self,
        words: nn.Embedding,
        dim: int,
        heads: int,
        dropout: float = 0.1,
        residual_weight: float = 0.8,
        pooling: str | None = "maxk+relation",
        normalise: bool = True,
    ) -> None:
        super().__init__()
        self.normalise = normalise
        self.words = words
        self.gru = nn.GRU(words.embedding_dim, dim, batch_first=True, bidirectional=True)
        self.fragment_relation = (
            FragmentRelation(dim, heads, dropout, residual_weight, pooling, pooling_dropout=dropout)
            if pooling
            else None
        )

    def forward(
        self, pieces: torch.Tensor, lengths: torch.Tensor, least_pieces: int | None = None
    ) -> Encoded:
        """pieces: (N, L) ids of words; lengths: (N,) on the CPU, longest first. Returns `Encoded`.

        Fragments of padding are zero; `least_pieces` has no effect, because a GRU computes none.
        """
        ids = pack_padded_sequence(pieces, lengths, batch_first=True)
        states = self.gru(PackedSequence(self.words(ids.data), ids.batch_sizes))[0]
        # (N, L, 2E)
        states = pad_packed_sequence(states, batch_first=True, total_length=pieces.size(1))[0]
        fragments = states.unflatten(2, (2, -1)).mean(2)  # (N, L, E)
        return _encoded(self, fragments, lengths)


def _select(fragments, is_seen):
    """The fragments that a view sees, before the others, and their number. is_seen: (N, R)."""
    order = is_seen.byte().argsort(dim=1, descending=True, stable=True)
    order = order.to(fragments.device, non_blocking=True).unsqueeze(2)
    return fragments.gather(1, order.expand_as(fragments)), is_seen.sum(1)


def _encoded(encoder, fragments, lengths):
    if encoder.fragment_relation is None:
        fragments = fragments.float()
        return Encoded(
            None, None, l2_normalise(fragments) if encoder.normalise else fragments, lengths
        )
    pooled = encoder.fragment_relation(fragments, lengths).float()  # it may have run in bf16
    return Encoded(
        l2_normalise(pooled) if encoder.normalise else pooled, pooled, fragments.detach(), lengths
    )
