"""NAAF's scores of image-caption pairs (Zhang et al., CVPR 2022), and the threshold between
mismatched and matched words that they learn.

Words attend to regions. A word's score is the cosine with what it attends to above the threshold
(f), the relevance of all regions (g), and how far its best match stays below the threshold (h).
The threshold comes from the batch: `batch`, our default, sets it once a batch, so that no caption
waits for another; `published` sets it after each caption.
"""

# C captions, B images, R regions, L words, E embedding
# of a block: n captions, b images

from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from ..system import distributed
from .cross_attention import (
    EPSILON,
    REGIONS,
    aggregate_words,
    attend,
    gram,
    mask,
    region_form,
    safe_sqrt,
)
from .pair_scores import Fragments, clean_fragments, score_pairs
from .pooling import real_mask

TEMPERATURE = 20.0
INTRA_TEMPERATURE = 5.0
PENALTY = 2.0  # of a mismatched word above the threshold, against a matched one below
MOMENTUM = 0.7  # of what a batch says
LEAST_WORDS = 200
SAFE_DEVIATIONS = 3.0
THRESHOLD_UPDATES = ("batch", "published")


class Thresholds(NamedTuple):
    """Two scalar tensors: of training, and of the tests."""

    threshold: torch.Tensor
    safe: torch.Tensor


def _word_scores(block, threshold, negative):
    """f + g + negative of every word, aggregated. threshold: broadcast to (n, L, R, b)."""
    (region_gram,), match = block.image_side, block.match
    above = match - threshold
    # no -inf for padding and for what does not pass: its exponential takes ten times as long
    positive = (TEMPERATURE * above.clamp(min=0)).exp() * (
        above > 0
    )  # all 0 where no region passes
    positive = mask(positive, block.padded_regions, 0)
    positive = positive / (positive.sum(REGIONS, keepdim=True) + EPSILON)
    dot = (positive * match).sum(REGIONS)  # (n, L, b)
    attended = safe_sqrt(region_form(positive, region_gram))
    matched = dot / attended.clamp(min=EPSILON)
    relevance = (attend(block, REGIONS, TEMPERATURE) * match).sum(REGIONS)
    return aggregate_words(block, matched + relevance + negative)


def _best_match(block):
    return mask(block.match, block.padded_regions).amax(REGIONS)  # (n, L, b)


def _training_score(block):
    """Thresholds of each caption, (n,), are the caption side."""
    threshold = block.caption_side[0][:, None, None, None]
    negative = (_best_match(block) - threshold.squeeze(3)).clamp(max=0)
    return _word_scores(block, threshold, negative)


def _evaluation_score(block, threshold):
    """A word is mismatched where the margins of its caption's words, weighted by their
    similarity to it, say so."""
    margin = _best_match(block) - threshold  # (n, L, b)
    similarity = INTRA_TEMPERATURE * block.caption_side[0]  # (n, L, L)
    if block.padded_words is not None:
        similarity = similarity.masked_fill(block.padded_words.flatten(1).unsqueeze(1), -torch.inf)
    propagated = similarity.softmax(2) @ margin
    return _word_scores(block, threshold, margin.masked_fill(propagated >= 0, 0))


class WordSums(NamedTuple):
    """Sums over the words of captions that found their image: scalars, float64.

    count: words; the others: of their best matches, and of the squares, in their own image
    (matched) and in the image of the lowest score (mismatched).
    """

    count: torch.Tensor
    matched: torch.Tensor
    matched_squares: torch.Tensor
    mismatched: torch.Tensor
    mismatched_squares: torch.Tensor


@torch.no_grad()
def word_sums(scores: torch.Tensor, fragments: Fragments, own_images: torch.Tensor) -> WordSums:
    """`WordSums` of some captions. scores: (B, C); own_images: (C,), the row of each caption's
    image."""
    regions, words, region_lengths, caption_lengths = fragments
    device = regions.device
    is_real = real_mask(caption_lengths, words.size(1), device)
    is_counted = is_real & (scores.argmax(0) == own_images).unsqueeze(1)  # (C, L)
    padded = None
    if int(region_lengths.min()) < regions.size(1):
        padded = ~real_mask(region_lengths, regions.size(1), device)
    sums = [is_counted.sum().double()]
    for image in (own_images, scores.argmin(0)):
        with torch.autocast(device.type, enabled=False):
            match = words @ regions.index_select(0, image).mT  # (C, L, R)
        unseen = None if padded is None else padded.index_select(0, image).unsqueeze(1)
        best = mask(match, unseen).amax(2).double().masked_fill(~is_counted, 0)  # (C, L)
        sums += [best.sum(), best.square().sum()]
    return WordSums(*sums)


def _mean_and_variance(count, total, squares):
    mean = total / count
    return mean, ((squares - count * mean.square()) / (count - 1)).clamp(min=0)


def best_thresholds(sums: WordSums, before: Thresholds) -> Thresholds:
    """Where normal densities of the two samples, the mismatched one weighted, intersect between
    their means; and three deviations below the matched mean. Averaged with those before. No
    gradient, and nothing waits for the device."""
    matched, variance = _mean_and_variance(sums.count, *sums[1:3])
    mismatched, other = _mean_and_variance(sums.count, *sums[3:5])
    deviation = variance.sqrt()
    ratio = other.sqrt() / (PENALTY * deviation)
    a = variance - other
    b = 2 * (matched * other - mismatched * variance)
    c = (
        mismatched.square() * variance
        - matched.square() * other
        + 2 * variance * other * (ratio + EPSILON).log()
    )
    discriminant = b.square() - 4 * a * c
    root = (-b + discriminant.clamp(min=0).sqrt()) / (2 * a + 1e-10)
    found = []
    for value, old in zip((root, matched - SAFE_DEVIATIONS * deviation), before):
        value = torch.where((value >= 0) & (value <= 1), value, 0)  # a nan too
        value = torch.where(discriminant > 0, value, old.double())
        found.append((MOMENTUM * value + (1 - MOMENTUM) * old).to(old.dtype))
    return Thresholds(*found)


def updated_thresholds(sums: WordSums, before: Thresholds) -> Thresholds:
    """`best_thresholds`, or zeros where there are too few words."""
    has_enough = sums.count > LEAST_WORDS
    return Thresholds(
        *(torch.where(has_enough, new, 0) for new in best_thresholds(sums, before)),
    )


class NAAF(nn.Module):
    """The scores, and the two thresholds as buffers: those of the last training batch.

    threshold_update: one of THRESHOLD_UPDATES. With `batch`, a training batch is scored with the
    threshold of the batch before.
    """

    threshold: torch.Tensor
    safe_threshold: torch.Tensor

    def __init__(self, threshold_update: str = "batch") -> None:
        super().__init__()
        self.threshold_update = threshold_update
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("safe_threshold", torch.zeros(()))

    def forward(
        self,
        regions: torch.Tensor,
        words: torch.Tensor,
        region_lengths: torch.Tensor | None,
        caption_lengths: torch.Tensor,
        own_images: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The scores of all images with all captions, (B, C), with gradient.

        regions: (B, R, E); words: (C, L, E), padded; lengths: as those of `scan_scores`;
        own_images: (C,), the row of each caption's image, None: caption i belongs to image i. In
        training the thresholds are updated. Of several processes, each gives all images and its
        shard of the captions, see `own_rows`; the statistics are those of the whole batch.
        `published` runs in one process.
        """
        fragments = clean_fragments(regions, words, region_lengths, caption_lengths)
        if not self.training:
            return evaluation_scores(fragments, self.safe_threshold)
        if own_images is None:
            own_images = own_rows(len(words), words.device)
        if self.threshold_update == "published":
            thresholds = self.walk(fragments, own_images)
        else:
            thresholds = self.threshold.clone().expand(len(words))
        scores = training_scores(fragments, thresholds)
        if self.threshold_update == "batch":
            self.update(word_sums(scores.detach(), fragments, own_images))
        return scores

    @torch.no_grad()
    def update(self, sums: WordSums) -> None:
        """Set the thresholds by the sums of a batch, added over all processes."""
        sums = WordSums(*distributed.gather(torch.stack(sums).unsqueeze(0)).sum(0))
        self.set_thresholds(updated_thresholds(sums, self.thresholds()))

    def thresholds(self) -> Thresholds:
        """The thresholds as they are."""
        return Thresholds(self.threshold, self.safe_threshold)

    @torch.no_grad()
    def set_thresholds(self, thresholds: Thresholds) -> None:
        """Overwrite the buffers."""
        self.threshold.copy_(thresholds.threshold)
        self.safe_threshold.copy_(thresholds.safe)

    @torch.no_grad()
    def walk(self, fragments: Fragments, own_images: torch.Tensor) -> torch.Tensor:
        """The published way: captions one after the other, each scored with the threshold that
        those before it have left. Leaves the thresholds after the last. Returns (C,)."""
        assert distributed.world_size() == 1
        used = []
        sums = WordSums(*torch.zeros(5, dtype=torch.float64, device=fragments.words.device))
        for caption in range(len(fragments.words)):
            used.append(self.threshold.clone())
            one = slice(caption, caption + 1)
            single = fragments._replace(
                words=fragments.words[one], caption_lengths=fragments.caption_lengths[one]
            )
            scores = training_scores(single, used[-1].unsqueeze(0))
            found = word_sums(scores, single, own_images[one])
            sums = WordSums(*(before + more for before, more in zip(sums, found)))
            updated = updated_thresholds(sums, self.thresholds())
            is_kept = (found.count == 0) & (sums.count > LEAST_WORDS)
            self.set_thresholds(
                Thresholds(
                    *(
                        torch.where(is_kept, old, new)
                        for old, new in zip(self.thresholds(), updated)
                    )
                )
            )
        return torch.stack(used)


def own_rows(count: int, device: torch.device) -> torch.Tensor:
    """The row of each caption's image in the whole batch, where caption i of this process's shard
    belongs to image i of it: (count,)."""
    size = distributed.world_size()
    return torch.arange(count, device=device) * size + distributed.rank()


def training_scores(fragments: Fragments, thresholds: torch.Tensor) -> torch.Tensor:
    """Scores as in training, (B, C). thresholds: (C,), of each caption."""
    sides = (thresholds.to(fragments.words.dtype),), (gram(fragments.regions),)
    return score_pairs(_training_score, fragments, *sides)


def evaluation_scores(fragments: Fragments, threshold: torch.Tensor) -> torch.Tensor:
    """Scores as in evaluation, (B, C). threshold: a scalar."""
    sides = (gram(fragments.words.detach()),), (gram(fragments.regions),)
    return score_pairs(
        partial(_evaluation_score, threshold=threshold.to(fragments.words.dtype)), fragments, *sides
    )
