"""Losses of the similarities in a batch: hinge triplets and InfoNCE. The negatives of a triplet are
all, the hardest, selective or distance-weighted.

Equations: docs/method.md, section 5.

S_ij is the similarity of image i and caption j, such as u_i . w_j. Pairs of the same image are
positives, and never negatives. `negative_distribution` departs from the published code in two
points: it takes the maximum over admissible negatives only, and an anchor without any does not
remove the loss of its whole direction.
"""

# B pairs, P (anchor, positive) pairs, E embedding

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

SAMPLING_DIMENSION = 512  # the dimension of the sphere in Wu et al., as published, whatever E is
SMALLEST_DISTANCE = 0.5
FIRST_TEMPERATURE, SMALLEST_TEMPERATURE = 0.07, 0.01  # of CLIP
CONFUSABLE = 0.01  # selective: difference of similarities below which all negatives count


class Positives(NamedTuple):
    """The positives of a batch: is_positive, (B, B) bool, and its P pairs (anchor, positive),
    row by row, (P,) each."""

    is_positive: torch.Tensor
    anchor: torch.Tensor
    positive: torch.Tensor


def find_positives(
    image_ids: torch.Tensor,
    mask_repeat: bool = True,
    device: torch.device | str | None = None,
) -> Positives:
    """The positive pairs: those of the same image, or only the diagonal.

    image_ids: (B,) on the CPU, so that their number is known without synchronising. Returns
    `Positives` on `device`.
    """
    is_positive = (
        image_ids.unsqueeze(1) == image_ids
        if mask_repeat
        else torch.eye(len(image_ids), dtype=torch.bool)
    )
    return Positives(
        *(
            part.to(device, non_blocking=True)
            for part in (is_positive, *is_positive.nonzero(as_tuple=True))
        )
    )


def similarity_matrices(
    sides: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    """Similarities of T pairs (image embeddings, caption embeddings), (B, E) each. Returns
    (T, B, B)."""
    images, captions = (torch.stack(side) for side in zip(*sides))
    return images @ captions.mT


def worst_views(similarities: torch.Tensor) -> torch.Tensor:
    """Similarities of captions as anchors with images that have V views: (V, B, B), images x
    captions, to (B, B). Of its own image a caption has the least similar view, of any other image
    the most similar one."""
    is_own = torch.eye(similarities.size(-1), dtype=torch.bool, device=similarities.device)
    return torch.where(is_own, similarities.amin(0), similarities.amax(0))


def hinge_loss(
    similarities: torch.Tensor,
    positives: Positives,
    margin: float,
    negatives: str,
    for_captions: torch.Tensor | None = None,
) -> torch.Tensor:
    """`vse`: hinge triplets summed over the batch, images and captions as anchors.

    similarities: (..., B, B), images x captions; negatives: "all": their sum; "hardest": the most
    similar one of each anchor; "selective": the hardest, but the mean of all where the hardest is
    within CONFUSABLE of the positive, because its gradient and the positive's cancel there;
    for_captions: (B, B), those of captions as anchors, if they are others. Returns (...).
    """
    for_captions = similarities if for_captions is None else for_captions
    is_positive, losses = positives.is_positive, []  # symmetric
    for rows in (similarities, for_captions.mT):  # a row an anchor
        paired = rows.diagonal(dim1=-2, dim2=-1)
        violations = (margin + rows - paired.unsqueeze(-1)).clamp(min=0).masked_fill(is_positive, 0)
        if negatives == "all":
            losses.append(violations.sum((-2, -1)))
            continue
        anchors = violations.amax(-1)
        if negatives == "selective":
            hardest = rows.detach().masked_fill(is_positive, -torch.inf).amax(-1)
            is_confusable = (paired.detach() - hardest).abs() < CONFUSABLE
            mean = violations.sum(-1) / (~is_positive).sum(-1).clamp(min=1)
            anchors = torch.where(is_confusable, mean, anchors)
        losses.append(anchors.sum(-1))
    return losses[0] + losses[1]


def negative_distribution(
    similarities: torch.Tensor, is_positive: torch.Tensor, longest_distance: float
) -> torch.Tensor:
    """Distance-weighted distribution over each anchor's negatives
    (Wu et al., ICCV 2017, equation 4; section 5).

    similarities: (..., B, B), a row an anchor; is_positive: (B, B) bool; longest_distance:
    negatives this far or farther are not admissible (1.7 Flickr30K, 1.9 COCO). Returns
    (..., B, B); a row without admissible negatives is all zero.
    """
    distances = (2 - 2 * similarities).clamp(min=SMALLEST_DISTANCE**2).sqrt()
    log_weights = (2 - SAMPLING_DIMENSION) * distances.log() - (
        SAMPLING_DIMENSION - 3
    ) / 2 * torch.log(1 - distances.square() / 4)
    log_weights = log_weights.nan_to_num(0, 0, 0)
    is_excluded = is_positive | ~(distances < longest_distance)
    # The shift by the largest admissible weight leaves the distribution as it is and keeps exp()
    # from underflowing.
    largest = log_weights.masked_fill(is_excluded, -torch.inf).amax(-1, keepdim=True)
    weights = (log_weights - largest).exp().masked_fill(is_excluded, 0)
    return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


def draw_negatives(
    distribution: torch.Tensor, generator: torch.Generator | None = None
) -> torch.Tensor:
    """One draw from each row of `distribution`, (..., P, B), none of them all zero. Returns
    (..., P) indices.

    The exponential race that torch.multinomial runs, so the same generator state gives the same
    draws, without its checks, which wait for the GPU. Each (P, B) is drawn in its turn.
    """
    race = torch.empty_like(distribution)
    for rows in race.view(-1, *race.shape[-2:]).unbind():
        rows.exponential_(generator=generator)
    return (distribution / race).argmax(-1)


def triplet_loss(
    similarities: torch.Tensor,
    positives: Positives,
    margin: float,
    longest_distance: float,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """`trip`: hinge triplets with one distance-weighted negative drawn for each
    (anchor, positive) pair, summed.

    similarities: (..., B, B), images x captions, of unit vectors. The negatives of each matrix are
    drawn in turn, first for images as anchors, then for captions. Anchors without an admissible
    negative are left out. Returns (...).
    """
    rows = torch.stack([similarities, similarities.mT], dim=-3)  # (..., 2, B, B), a row an anchor
    distribution = negative_distribution(rows.detach(), positives.is_positive, longest_distance)
    distribution = distribution.index_select(-2, positives.anchor)  # (..., 2, P, B)
    has_negative = distribution.sum(-1) > 0
    negative = draw_negatives(distribution, generator)  # (..., 2, P)
    others = torch.stack([negative, positives.positive.expand_as(negative)], dim=-1)
    # gather single numbers instead of rows, whose gradient would have to be accumulated
    places = others + len(positives.is_positive) * positives.anchor.unsqueeze(-1)
    found = rows.flatten(-2).gather(-1, places.flatten(-2)).unflatten(-1, (-1, 2))
    wrong, right = found.unbind(-1)
    violations = (margin + wrong - right).clamp(min=0)
    return violations.masked_fill(~has_negative, 0).sum((-2, -1))


def inverse_temperature(log_scale: torch.Tensor) -> torch.Tensor:
    """exp(s) of a learnt scalar s, whose temperature exp(-s) stays at SMALLEST_TEMPERATURE at
    least."""
    # clamped in place: at the limit the parameter still receives a gradient
    with torch.no_grad():
        log_scale.clamp_(max=-math.log(SMALLEST_TEMPERATURE))
    return log_scale.exp()


class InfoNCE(nn.Module):
    """`infonce`: cross-entropy of each image's own caption in the batch and of each caption's own
    image.

    The form of CLIP (Radford et al., ICML 2021): the mean over the batch and both directions, with
    a learnt temperature exp(-s), or a fixed one. The other positives of an anchor are left out of
    its denominator.
    """

    def __init__(self, temperature: float | None = None) -> None:
        """temperature: fixed, or None: learnt, from FIRST_TEMPERATURE."""
        super().__init__()
        self.temperature = temperature
        if temperature is None:
            self.log_scale = nn.Parameter(torch.tensor(-math.log(FIRST_TEMPERATURE)))  # s

    def forward(
        self,
        similarities: torch.Tensor,
        positives: Positives,
        for_captions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """similarities: (B, B), images x captions; for_captions: those of captions as anchors, if
        they are others. Returns a scalar."""
        own = torch.arange(len(similarities), device=similarities.device)
        is_other_positive = positives.is_positive & (own != own.unsqueeze(1))
        scale = self.scale()
        logits = captions = (scale * similarities).masked_fill(is_other_positive, -torch.inf)
        if for_captions is not None:
            captions = (scale * for_captions).masked_fill(is_other_positive, -torch.inf)
        return (F.cross_entropy(logits, own) + F.cross_entropy(captions.T, own)) / 2

    def scale(self) -> torch.Tensor | float:
        """The inverse temperature."""
        if self.temperature is not None:
            return 1 / self.temperature
        return inverse_temperature(self.log_scale)
