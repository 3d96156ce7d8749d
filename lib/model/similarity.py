"""The similarity of images and captions by cross-attention, as part of a model
(docs/baselines.md)."""

# B images, C captions

from typing import Any

import torch
from torch import nn

from ..system import distributed
from .cross_attention import chan_scores, scan_scores
from .encoders import Encoded
from .naaf import NAAF
from .options import ModelOptions

ATTENTION_TEMPERATURES = {"t2i": 9.0, "i2t": 4.0}  # of SCAN, as published
LSE_TEMPERATURES = {"t2i": 6.0, "i2t": 5.0}
CHAN_LSE_TEMPERATURE = 10.0


class CrossAttention(nn.Module):
    """Scores of all images with all captions from their fragments, by --similarity scan, naaf or
    chan. NAAF has thresholds, which are buffers; the others have no state."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        self.kind, way = options.similarity, options.cross_attention
        self.settings: dict[str, Any] = dict(aggregation=options.aggregation)
        if self.kind == "scan":
            self.settings |= dict(
                cross_attention=way,
                attention_temperature=options.attention_temperature or ATTENTION_TEMPERATURES[way],
                lse_temperature=options.lse_temperature or LSE_TEMPERATURES[way],
                match_norm=options.match_norm,
            )
        elif self.kind == "chan":
            self.settings |= dict(lse_temperature=options.lse_temperature or CHAN_LSE_TEMPERATURE)
        else:
            self.naaf = NAAF()

    def forward(self, images: Encoded, captions: Encoded) -> torch.Tensor:
        """Scores (B, C). In training, caption i belongs to image i."""
        inputs = images.fragments, captions.fragments, images.lengths, captions.lengths
        if self.kind == "naaf":
            return self.naaf(*inputs)
        scores = scan_scores if self.kind == "scan" else chan_scores
        return scores(*inputs, **self.settings)

    def of_whole_batch(self, images: Encoded, captions: Encoded) -> torch.Tensor:
        """Scores (B, B) of the whole batch from the fragments of this process's shard: a process
        computes the scores of its own captions with the images of all processes."""
        images = images._replace(
            fragments=distributed.gather_for_shard(images.fragments),
            lengths=distributed.gather(images.lengths),
        )
        return distributed.gather(self(images, captions).T).T
