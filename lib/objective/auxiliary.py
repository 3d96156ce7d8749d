"""Terms that are added to the losses of pairs. They compare more than the similarities of pairs.

Equations: docs/method.md, section 5.
"""

# B pairs, N pairs of a shard, R regions, D region feature size, L pieces, V vocabulary, E embedding

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .losses import inverse_temperature

OFF_DIAGONAL = 0.0051  # of Barlow Twins, as in AVSE
FIRST_TEMPERATURE = 0.45  # of the similarities beside soft labels, learnt
LABEL_TEMPERATURE = 0.2  # of the labels: in batches of 128, a pair has about half of its own row
SHORTEST_COLUMN = 1e-4  # a shorter one is not scaled to unit length: its gradient would be huge


def decorrelation_loss(u: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """The features of images and captions agree one by one, and not with each other.

    Cosines of the columns of u and w, (B, E), over the batch: near 1 for the same feature and near
    0 for two different ones, as in AVSE and Barlow Twins (Zbontar et al., ICML 2021), whose columns
    are also centred. Returns a scalar.
    """
    images, captions = (F.normalize(side, dim=0, eps=SHORTEST_COLUMN) for side in (u, w))
    cosines = images.mT @ captions  # (E, E)
    own = cosines.diagonal()
    others = cosines.square().sum() - own.square().sum()
    return (1 - own).square().sum() + OFF_DIAGONAL * others


class FrozenFeatures(NamedTuple):
    """What soft labels compare: images (B, D) and captions (B, H) by features that are never
    trained, without gradient."""

    images: torch.Tensor
    captions: torch.Tensor


class SoftLabels(nn.Module):
    """Similarities of images and captions follow those within each modality, as frozen features
    have them, in the form of CUSA.

    An image is the mean of its region features, a caption the mean of the initial embeddings of its
    pieces.
    """

    def __init__(self, words: torch.Tensor | None) -> None:
        """words: (V, H) initial embeddings, zero for special pieces. They are not saved."""
        super().__init__()
        self.register_buffer("words", words, persistent=False)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(FIRST_TEMPERATURE)))

    @torch.no_grad()
    def read(self, regions: torch.Tensor, pieces: torch.Tensor) -> FrozenFeatures:
        """regions: (N, R, D), zero beyond their lengths; pieces: (N, L) ids. Returns
        `FrozenFeatures` of N pairs."""
        # sums instead of means: the length of a vector does not matter
        captions = F.embedding_bag(pieces, self.words, mode="sum")
        return FrozenFeatures(regions.sum(1), captions)

    def forward(self, similarities: torch.Tensor, frozen: FrozenFeatures) -> torch.Tensor:
        """similarities: (B, B), images x captions. Returns a scalar: the mean over the batch and
        both directions."""
        scaled = inverse_temperature(self.log_scale) * similarities
        rows = zip(frozen, (scaled, scaled.mT))
        divergences = [
            F.kl_div(
                logits.log_softmax(1), soft_labels(features), reduction="batchmean", log_target=True
            )
            for features, logits in rows
        ]
        return (divergences[0] + divergences[1]) / 2


@torch.no_grad()
def soft_labels(features: torch.Tensor) -> torch.Tensor:
    """Logarithms of each row's distribution over the batch, (B, B). features: (B, D).

    The mean of the batch is subtracted first: what all samples share makes their cosines alike.
    """
    features = F.normalize(features, dim=1)
    features = F.normalize(features - features.mean(0), dim=1)
    return (features @ features.mT / LABEL_TEMPERATURE).log_softmax(1)
