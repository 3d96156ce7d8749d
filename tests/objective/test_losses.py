"""The losses against loops over pairs, and the batches in which an anchor finds no negative."""

import math
from functools import partial

import helpers
import pytest
import torch

from lib.objective import losses
from lib.objective.losses import (
    draw_negatives,
    find_positives,
    hinge_loss,
    negative_distribution,
    triplet_loss,
)

MARGIN = 0.2


close = partial(helpers.close, absolute=1e-10)


def unit_rows(count, dim, seed):
    vectors = torch.randn(
        count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return torch.nn.functional.normalize(vectors, dim=1)


def pairs(count, seed, dim=6):
    """Leaf embeddings of as many images and captions, somewhat alike within a pair."""
    images = unit_rows(count, dim, seed)
    captions = torch.nn.functional.normalize(images + 2 * unit_rows(count, dim, seed + 1000), dim=1)
    return images.requires_grad_(), captions.requires_grad_()


def similarity_matrix(count, spread, seed):
    uniform = torch.rand(
        count, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return spread * (2 * uniform - 1)


def naive_positives(image_ids, mask_repeat):
    ids = image_ids.tolist()
    return [
        [(ids[i] == ids[j]) if mask_repeat else i == j for j in range(len(ids))]
        for i in range(len(ids))
    ]


def naive_hinge(u, w, is_positive, negatives):
    total = torch.zeros(())
    for rows in (u @ w.T, w @ u.T):
        for anchor, row in enumerate(rows):
            others = [s for j, s in enumerate(row) if not is_positive[anchor][j]]
            violations = [(MARGIN + s - row[anchor]).clamp(min=0) for s in others]
            if not others:
                continue
            is_confusable = abs(row[anchor] - max(others)) < 0.01
            if negatives == "all":
                total = total + sum(violations)
            elif negatives == "selective" and is_confusable:
                total = total + sum(violations) / len(violations)
            else:
                total = total + max(violations)
    return total


def naive_distribution(similarities, is_positive, longest_distance):
    rows = []
    for row, positive_row in zip(similarities.tolist(), is_positive):
        log_weights = [-math.inf] * len(row)
        for j, cosine in enumerate(row):
            distance = math.sqrt(max(2 - 2 * cosine, 0.5**2))
            if not positive_row[j] and distance < longest_distance:
                log_weights[j] = (2 - 512) * math.log(distance) - (512 - 3) / 2 * math.log(
                    1 - distance**2 / 4
                )
        largest = max(log_weights)
        weights = [math.exp(value - largest) if value > -math.inf else 0.0 for value in log_weights]
        rows.append([weight / (sum(weights) or 1) for weight in weights])
    return torch.tensor(rows, dtype=torch.float64)


def naive_triplets(u, w, is_positive, drawn, longest_distance):
    """The loss for the negatives drawn in each direction, in the order of the
    (anchor, positive) pairs."""
    total = torch.zeros((), dtype=torch.float64)
    for rows, negatives in zip((u @ w.T, w @ u.T), drawn):
        distribution = naive_distribution(rows.detach(), is_positive, longest_distance)
        every_pair = [(a, p) for a in range(len(u)) for p in range(len(u)) if is_positive[a][p]]
        assert len(every_pair) == len(negatives)
        for (anchor, positive), negative in zip(every_pair, negatives.tolist()):
            if distribution[anchor].sum():
                assert distribution[anchor, negative] > 0
                total = total + (MARGIN + rows[anchor, negative] - rows[anchor, positive]).clamp(
                    min=0
                )
    return total


def record_draws(monkeypatch):
    """The negatives that `triplet_loss` draws from here on, a tensor a direction."""
    drawn = []

    def recorded(*arguments):
        found = draw_negatives(*arguments)
        drawn.extend(found.flatten(0, -2))
        return found

    monkeypatch.setattr(losses, "draw_negatives", recorded)
    return drawn


def check_gradients(found, expected, leaves):
    close(found, expected.detach())
    for ours, loop in zip(
        torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves)
    ):
        close(ours, loop)


@pytest.mark.parametrize("mask_repeat", [False, True])
@pytest.mark.parametrize("ids", [[7, 7, 3, 7], [0, 1], [5, 5], [4]])
def test_positives_are_the_pairs_of_one_image_or_the_diagonal(ids, mask_repeat):
    image_ids = torch.tensor(ids)
    found, expected = (
        find_positives(image_ids, mask_repeat),
        naive_positives(image_ids, mask_repeat),
    )
    assert found.is_positive.tolist() == expected
    every_pair = [(a, p) for a in range(len(ids)) for p in range(len(ids)) if expected[a][p]]
    assert list(zip(found.anchor.tolist(), found.positive.tolist())) == every_pair


def test_three_captions_of_one_image_and_one_other_give_ten_positive_pairs():
    assert len(find_positives(torch.tensor([7, 7, 3, 7])).anchor) == 10
    assert len(find_positives(torch.tensor([7, 7, 3, 7]), mask_repeat=False).anchor) == 4


@pytest.mark.parametrize("negatives", ["all", "hardest", "selective"])
@pytest.mark.parametrize("mask_repeat", [False, True])
@pytest.mark.parametrize(
    "seed, ids", [(0, [0, 1]), (1, [3, 1, 3, 2, 3]), (2, [*range(9)]), (3, [0, 0, 1, 1, 2, 2, 2])]
)
def test_hinge_loss_is_the_loop(seed, ids, mask_repeat, negatives):
    u, w = pairs(len(ids), seed)
    positives = find_positives(torch.tensor(ids), mask_repeat)
    expected = naive_hinge(u, w, naive_positives(torch.tensor(ids), mask_repeat), negatives)
    assert expected > 0
    check_gradients(hinge_loss(u @ w.T, positives, MARGIN, negatives), expected, (u, w))


def test_only_mask_repeat_spares_another_caption_of_the_same_image():
    u = torch.eye(3, dtype=torch.float64)[[0, 0, 1]]
    image_ids = torch.tensor([5, 5, 6])
    for negatives in ("all", "hardest"):
        assert hinge_loss(u @ u.T, find_positives(image_ids, True), MARGIN, negatives) == 0
        close(hinge_loss(u @ u.T, find_positives(image_ids, False), MARGIN, negatives), 4 * MARGIN)


@pytest.mark.parametrize("longest_distance", [1.7, 1.9])
@pytest.mark.parametrize("spread", [0.02, 0.3, 0.99])
@pytest.mark.parametrize("seed, ids", [(0, [0, 1]), (1, [3, 1, 3, 2, 3]), (2, [*range(12)])])
def test_the_distribution_of_negatives_is_the_loop(seed, ids, spread, longest_distance):
    similarities = similarity_matrix(len(ids), spread, seed)
    positives = find_positives(torch.tensor(ids))
    expected = naive_distribution(similarities, positives.is_positive.tolist(), longest_distance)
    close(negative_distribution(similarities, positives.is_positive, longest_distance), expected)
    close(
        negative_distribution(similarities.float(), positives.is_positive, longest_distance),
        expected,
        absolute=1e-3,
    )


def test_only_negatives_nearer_than_the_longest_distance_are_drawn():
    at = {distance: 1 - distance**2 / 2 for distance in (1.69, 1.71, 1.89, 1.91)}
    similarities = torch.tensor([[1.0, *at.values()]] * 5, dtype=torch.float64)
    is_positive = torch.tensor([[True, False, False, False, False]] * 5)
    near, far = (
        negative_distribution(similarities, is_positive, longest)[0] > 0 for longest in (1.7, 1.9)
    )
    assert near.tolist() == [False, True, False, False, False]
    assert far.tolist() == [False, True, True, True, False]


def test_negatives_nearer_than_half_weigh_as_much_as_those_at_half():
    half = 1 - 0.5**2 / 2
    similarities = torch.tensor([[1.0, half, 0.93, 1.0, 0.8]], dtype=torch.float64)
    found = negative_distribution(
        similarities, torch.tensor([[True, False, False, False, False]]), 1.7
    )[0]
    close(found[1:4], found[1].expand(3))
    assert found[0] == 0 and 0 < found[4] < found[1]


def test_an_inner_product_beyond_one_counts_as_the_smallest_distance():
    similarities = torch.tensor([[1.0, 40.0, 0.9, -40.0]])
    found = negative_distribution(similarities, torch.tensor([[True, False, False, False]]), 1.7)
    close(found, [[0, 0.5, 0.5, 0]])


def test_one_pair_far_apart_does_not_underflow_its_row():
    similarities = similarity_matrix(128, 0.1, seed=0)
    similarities[5, 9] = -0.65
    is_positive = torch.eye(128, dtype=torch.bool)
    expected = naive_distribution(similarities, is_positive.tolist(), 1.7)
    close(expected.sum(1), torch.ones(128))

    distances = (2 - 2 * similarities[5].float()).sqrt()
    log_weights = -510 * distances.log() - 254.5 * (1 - distances.square() / 4).log()
    log_weights[5] = 0
    published = (log_weights - log_weights.max()).exp()  # the maximum over all negatives
    assert published[distances < 1.7].sum() == 0

    found = negative_distribution(similarities.float(), is_positive, 1.7)
    assert found[5, 9] == 0
    close(found, expected, absolute=1e-4)


def test_an_anchor_without_admissible_negatives_has_an_empty_row():
    similarities = torch.full((3, 3), -0.9)
    similarities[1] = 0.1
    found = negative_distribution(similarities, torch.eye(3, dtype=torch.bool), 1.7)
    close(found, [[0, 0, 0], [0.5, 0, 0.5], [0, 0, 0]], absolute=1e-6)


@pytest.mark.parametrize("rows, seed", [(1, 0), (5, 1), (40, 2)])
def test_draws_are_those_of_torch_multinomial(rows, seed):
    distribution = torch.rand(rows, 30, generator=torch.Generator().manual_seed(seed)).softmax(1)
    distribution[:, ::3] = 0
    ours, theirs = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
    for _ in range(3):
        assert (
            draw_negatives(distribution, ours).tolist()
            == torch.multinomial(distribution, 1, generator=theirs).squeeze(1).tolist()
        )
    assert torch.equal(ours.get_state(), theirs.get_state())


def test_draws_without_a_generator_follow_the_global_seed():
    distribution = torch.full((50, 20), 0.05)
    drawn = [draw_negatives(distribution) for seed in (3, 3, 4) if torch.manual_seed(seed)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_draws_are_as_frequent_as_the_distribution_says():
    distribution = torch.tensor([0.4, 0.0, 0.3, 0.2, 0.08, 0.02])
    drawn = draw_negatives(distribution.expand(20000, 6), torch.Generator().manual_seed(0))
    observed, expected = drawn.bincount(minlength=6), 20000 * distribution
    assert observed[1] == 0
    is_possible = distribution > 0
    chi_square = ((observed - expected).square() / expected)[is_possible].sum()
    assert chi_square < 23.5  # 4 degrees of freedom, one chance in ten thousand


@pytest.mark.parametrize("mask_repeat", [False, True])
@pytest.mark.parametrize(
    "seed, ids", [(0, [0, 1]), (1, [3, 1, 3, 2, 3]), (2, [*range(9)]), (3, [0, 0, 1, 1, 2, 2, 2])]
)
@pytest.mark.parametrize("longest_distance", [1.2, 1.7])
def test_triplet_loss_is_the_loop_over_the_negatives_drawn(
    monkeypatch, seed, ids, mask_repeat, longest_distance
):
    drawn = record_draws(monkeypatch)
    u, w = pairs(len(ids), seed)
    positives = find_positives(torch.tensor(ids), mask_repeat)
    found = triplet_loss(
        u @ w.T, positives, MARGIN, longest_distance, torch.Generator().manual_seed(seed)
    )
    expected = naive_triplets(
        u, w, naive_positives(torch.tensor(ids), mask_repeat), [*drawn], longest_distance
    )
    if longest_distance == 1.7 and len(ids) > 2:
        assert expected > 0
    if expected.requires_grad:
        check_gradients(found, expected, (u, w))
    else:
        close(found, 0)


def test_images_are_the_first_anchors_and_captions_the_second(monkeypatch):
    drawn = record_draws(monkeypatch)
    u, w = pairs(7, seed=4)
    positives = find_positives(torch.arange(7))
    triplet_loss(u @ w.T, positives, MARGIN, 1.7, torch.Generator().manual_seed(0))
    same = torch.Generator().manual_seed(0)
    for rows, negatives in zip((u @ w.T, w @ u.T), drawn):
        expected = torch.multinomial(
            negative_distribution(rows.detach(), positives.is_positive, 1.7), 1, generator=same
        )
        assert torch.equal(negatives, expected.squeeze(1))


def batch_with_a_lonely_anchor():
    """Image 0 lies opposite to captions 1 and 2, so that as an anchor it has no negative;
    every other anchor has."""
    captions = torch.tensor([[0.0, 1.0], [-0.9, 0.3], [-1.0, 0.0]], dtype=torch.float64)
    images = torch.tensor([[1.0, 0.0], [-0.3, 0.9], [-0.9, 0.3]], dtype=torch.float64)
    return (
        torch.nn.functional.normalize(side, dim=1).requires_grad_() for side in (images, captions)
    )


def test_an_anchor_without_negatives_is_left_out_alone(monkeypatch):
    drawn = record_draws(monkeypatch)
    u, w = batch_with_a_lonely_anchor()
    positives = find_positives(torch.arange(3))
    distribution = negative_distribution((u @ w.T).detach(), positives.is_positive, 1.7)
    assert (distribution.sum(1) > 0).tolist() == [False, True, True]
    found = triplet_loss(u @ w.T, positives, MARGIN, 1.7)
    expected = naive_triplets(u, w, positives.is_positive.tolist(), drawn, 1.7)
    assert expected > 0.3
    check_gradients(found, expected, (u, w))


@pytest.mark.parametrize("ids", [[4, 4, 4], [1]])
def test_a_batch_of_one_image_costs_nothing(ids):
    u, w = pairs(len(ids), seed=5)
    positives = find_positives(torch.tensor(ids))
    for loss in (
        triplet_loss(u @ w.T, positives, MARGIN, 1.7),
        hinge_loss(u @ w.T, positives, MARGIN, "all"),
        hinge_loss(u @ w.T, positives, MARGIN, "hardest"),
    ):
        assert loss == 0
        for gradient in torch.autograd.grad(loss, (u, w)):
            assert torch.equal(gradient, torch.zeros_like(gradient))


def test_equal_embeddings_cost_the_margin_an_anchor_and_a_direction():
    u = torch.tensor([[0.6, 0.8]]).repeat(4, 1)
    positives = find_positives(torch.arange(4))
    close(triplet_loss(u @ u.T, positives, MARGIN, 1.7), 2 * 4 * MARGIN, absolute=1e-6)
    close(hinge_loss(u @ u.T, positives, MARGIN, "hardest"), 2 * 4 * MARGIN, absolute=1e-6)
    close(hinge_loss(u @ u.T, positives, MARGIN, "all"), 2 * 4 * 3 * MARGIN, absolute=1e-6)


@pytest.mark.parametrize(("second", "is_confusable"), [(0.695, True), (0.685, False)])
def test_selective_takes_the_mean_where_the_hardest_is_within_a_hundredth(second, is_confusable):
    similarities = torch.zeros(3, 3, dtype=torch.float64).fill_diagonal_(0.7)
    similarities[0, 1] = second
    # the row of image 0, and the column of caption 1, whose hinge is the same
    expected = 2 * (MARGIN + second - 0.7) / (2 if is_confusable else 1)
    close(hinge_loss(similarities, find_positives(torch.arange(3)), MARGIN, "selective"), expected)
