"""Connection and relevance against loops over captions, images, pieces and regions."""

import math
from functools import partial

import helpers
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lib.model.encoders import Encoded
from lib.model.matches import BlockLimits
from lib.objective import relation
from lib.objective.relation import (
    CrossModalRelation,
    InstanceRelations,
    connection,
    distance_relevance,
    fragment_matches,
    intra_modal,
)

DIM = 4
BATCHES = {  # lengths of the captions, pieces they are padded to, regions, K
    "all longer than K": ([7, 5, 4], 7, 4, 3),
    "some shorter than K": ([8, 6, 4, 2], 8, 5, 5),
    "longest shorter than K": ([3, 3, 2], 3, 6, 10),
    "padded beyond the longest": ([4, 3], 9, 3, 6),
    "fewer regions than K": ([6, 5, 5], 6, 2, 5),
    "two pairs": ([8, 3], 8, 5, 4),
    "one piece and one region": ([1, 1], 1, 1, 3),
    "one region": ([5, 3, 1], 5, 1, 2),
    "K of one": ([5, 2, 1], 5, 3, 1),
    "not sorted": ([3, 8, 5, 8, 1], 8, 5, 4),
}
BLOCKS = [(128, 64, 2**20), (1, 0, 1), (2, 2, 150), (3, 0, 2**20), (10**6, 10**6, 2**40)]
FLOAT32 = 2e-6  # fragments are matched in float32, whatever comes in


close = partial(helpers.close, absolute=1e-10)
normal = partial(helpers.normal, dtype=torch.float64)


def unit_rows(count, dim, seed):
    return torch.nn.functional.normalize(normal(count, dim, seed=seed), dim=1)


def fragments(case, seed=0):
    """words, caption lengths, regions and K of one of BATCHES."""
    lengths, longest, num_regions, topk = BATCHES[case]
    words = normal(len(lengths), longest, DIM, seed=seed)
    return words, torch.tensor(lengths), normal(len(lengths), num_regions, DIM, seed=seed + 1), topk


def naive_cosine(left, right):
    dot = sum(x * y for x, y in zip(left, right))
    return dot / max(math.hypot(*left), 1e-12) / max(math.hypot(*right), 1e-12)


def naive_largest(values, topk):
    return (sorted(values, reverse=True) + [0.0] * topk)[:topk]


def naive_pair(words, length, regions, topk):
    """(mean, K largest) of caption to image, then of image to caption, of one pair;
    nested lists in."""
    pieces, num_regions = range(min(max(length, topk), len(words))), range(len(regions))
    match = [[naive_cosine(words[piece], region) for region in regions] for piece in pieces]
    match = [[value if value > 0 else 0.1 * value for value in row] for row in match]
    region_norm = [
        max(math.hypot(*(match[piece][r] for piece in pieces)), 1e-12) for r in num_regions
    ]
    piece_norm = [max(math.hypot(*match[piece]), 1e-12) for piece in pieces]
    of_piece = [max(match[piece][r] / region_norm[r] for r in num_regions) for piece in pieces]
    of_region = [
        max(match[piece][r] / piece_norm[piece] for piece in range(length)) for r in num_regions
    ]
    to_image = sum(of_piece[:length]) / length, naive_largest(of_piece, topk)
    to_caption = sum(of_region) / len(regions), naive_largest(of_region, topk)
    return to_image, to_caption


def naive_matches(words, lengths, regions, topk):
    """As `fragment_matches`, a pair at a time: (mean, largest) captions x images,
    (mean, largest) images x captions."""
    count = len(lengths)
    found = [
        [
            naive_pair(words[t].tolist(), int(lengths[t]), regions[v].tolist(), topk)
            for v in range(count)
        ]
        for t in range(count)
    ]
    t2i = [[[found[t][v][0][part] for v in range(count)] for t in range(count)] for part in (0, 1)]
    i2t = [[[found[t][v][1][part] for t in range(count)] for v in range(count)] for part in (0, 1)]
    return [
        [torch.tensor(part, dtype=torch.float64) for part in direction] for direction in (t2i, i2t)
    ]


def naive_connection(closeness, threshold):
    rows = []
    for row in closeness.tolist():
        least = sorted(row, reverse=True)[max(math.floor(len(row) * threshold), 1) - 1]
        rows.append([value >= least for value in row])
    return rows


def naive_relevance(left, right):
    return [[math.exp(-math.dist(x, y)) for y in right.tolist()] for x in left.tolist()]


@pytest.mark.parametrize("limits", BLOCKS)
@pytest.mark.parametrize("case", BATCHES)
def test_fragment_matches_are_the_loop_over_all_pairs_however_blocks_are_cut(
    monkeypatch, case, limits
):
    monkeypatch.setitem(relation.BLOCKS, "cpu", BlockLimits(*limits))
    inputs = fragments(case, seed=len(case))
    for found, expected in zip(fragment_matches(*inputs), naive_matches(*inputs)):
        close(found.mean, expected[0], absolute=FLOAT32)
        close(found.largest, expected[1], absolute=FLOAT32)


@pytest.mark.parametrize(
    "matches, images_at_once", [(2**20, [4]), (24 * 5 * 3, [3, 1]), (1, [1, 1, 1, 1])]
)
def test_a_block_holds_no_more_matches_than_it_may(monkeypatch, matches, images_at_once):
    # 24 pieces are read, with 5 regions each
    words, lengths, regions, topk = fragments("some shorter than K")
    monkeypatch.setitem(relation.BLOCKS, "cpu", BlockLimits(4, 64, matches))
    met, compute = [], relation._group_matches

    def recorded(match, *more):
        met.append(match.shape)
        return compute(match, *more)

    monkeypatch.setattr(relation, "_group_matches", recorded)
    fragment_matches(words, lengths, regions, topk)
    assert met == [(24, 5, images) for images in images_at_once]


def test_a_piece_or_region_of_zeros_matches_nothing():
    words, lengths, regions, topk = fragments("some shorter than K")
    words[1, 2], regions[2, 1] = 0, 0
    inputs = words, lengths, regions, topk
    for found, expected in zip(fragment_matches(*inputs), naive_matches(*inputs)):
        close(found.mean, expected[0], absolute=FLOAT32)
        close(found.largest, expected[1], absolute=FLOAT32)


@pytest.mark.parametrize(
    "case", ["all longer than K", "some shorter than K", "padded beyond the longest"]
)
def test_only_the_first_pieces_up_to_the_length_or_k_are_read(case):
    words, lengths, regions, topk = fragments(case)
    before = fragment_matches(words, lengths, regions, topk)
    for caption, length in enumerate(lengths.tolist()):
        for piece in range(words.size(1)):
            junk = words.clone()
            junk[caption, piece] = torch.tensor([50.0, -7.0, 3.0, 20.0])
            after = fragment_matches(junk, lengths, regions, topk)
            same = [torch.equal(x, y) for old, new in zip(before, after) for x, y in zip(old, new)]
            if piece >= max(length, topk):
                assert all(same)
            elif piece >= length:
                # padding that is selected: no image sees it, but the caption's own side does
                assert same == [False, False, True, True]
            else:
                assert same[1] is False


def test_padded_regions_take_part():
    words, lengths, regions, topk = fragments("two pairs")
    before = fragment_matches(words, lengths, regions, topk)
    regions[0, -1] *= -1
    after = fragment_matches(words, lengths, regions, topk)
    assert not any(torch.equal(x, y) for old, new in zip(before, after) for x, y in zip(old, new))


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.34, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_connection_is_the_loop_over_rows(count, threshold):
    # rounded, so that some are equal
    closeness = normal(count, count, seed=count).round(decimals=1)
    assert connection(closeness, threshold).tolist() == naive_connection(closeness, threshold)


def test_a_threshold_of_zero_connects_the_closest_and_of_one_everything():
    closeness = normal(6, 6, seed=0)
    assert torch.equal(connection(closeness, 0.0), closeness == closeness.amax(1, keepdim=True))
    assert connection(closeness, 1.0).all()


def test_instances_as_close_as_the_last_one_connected_are_connected_too():
    closeness = torch.tensor(
        [[3.0, 1.0, 2.0, 2.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 5.0, 4.0], [1.0, 2.0, 3.0, 4.0]]
    )
    assert connection(closeness, 0.5).tolist() == [
        [True, False, True, True],
        [True] * 4,
        [False, False, True, True],
        [False, False, True, True],
    ]


@pytest.mark.parametrize("left, right", [(3, 3), (2, 5), (26, 26), (60, 60)])
def test_distance_relevance_is_the_loop(left, right):
    left, right = (unit_rows(count, 32, seed) for seed, count in enumerate((left, right)))
    expected = naive_relevance(left, right)
    close(distance_relevance(left, right), expected)
    close(distance_relevance(left.float(), right.float()), expected, absolute=1e-6)


@pytest.mark.parametrize("count", [2, 25, 26, 128])
def test_an_instance_is_exactly_relevant_to_itself(count):
    embeddings = unit_rows(count, 64, seed=count).float()
    assert torch.equal(distance_relevance(embeddings, embeddings).diagonal(), torch.ones(count))


@pytest.mark.parametrize("count", [4, 40])
def test_relevance_has_the_loops_gradient_and_none_at_distance_zero(count):
    embeddings = unit_rows(count, 8, seed=count)
    embeddings[1] = embeddings[0]
    embeddings.requires_grad_()
    weights = normal(count, count, seed=1)
    (found,) = torch.autograd.grad(
        (weights * distance_relevance(embeddings, embeddings)).sum(), embeddings
    )
    apart = [(i, j) for i in range(count) for j in range(count) if i != j and {i, j} != {0, 1}]
    loop = sum(weights[i, j] * (-(embeddings[i] - embeddings[j]).norm()).exp() for i, j in apart)
    close(found, *torch.autograd.grad(loop, embeddings))

    twins = embeddings.detach()[:1].repeat(count, 1).requires_grad_()
    (gradient,) = torch.autograd.grad((weights * distance_relevance(twins, twins)).sum(), twins)
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("distance", ["l2", "l2sq"])
def test_the_gradient_of_relevance_is_that_of_finite_differences(distance):
    left, right = (normal(count, 3, seed=count).requires_grad_() for count in (4, 6))
    assert torch.autograd.gradcheck(
        lambda *rows: distance_relevance(*rows, distance), (left, right)
    )
    assert torch.autograd.gradcheck(
        lambda rows: distance_relevance(rows, right.detach(), distance), left
    )
    assert torch.autograd.gradcheck(
        lambda rows: distance_relevance(left.detach(), rows, distance), right
    )


@pytest.mark.parametrize("distance", ["l2", "l2sq"])
@pytest.mark.parametrize("spread", [1.0, 1e-2, 1e-4])
def test_the_gradient_of_near_embeddings_does_not_cancel_in_float32(spread, distance):
    rows = (unit_rows(1, 32, seed=0) + spread * unit_rows(12, 32, seed=1)).float()
    rows[3] = rows[7]
    weights = normal(12, 12, seed=2)
    exact = rows.double().requires_grad_()
    squares = (exact[:, None] - exact[None]).square().sum(2)
    # the root has no slope at 0
    apart = torch.where(squares == 0, 0, squares.masked_fill(squares == 0, 1).sqrt())
    naive = (-(apart if distance == "l2" else apart.square())).exp()
    (expected,) = torch.autograd.grad((weights * naive).sum(), exact)
    rows.requires_grad_()
    (found,) = torch.autograd.grad(
        (weights.float() * distance_relevance(rows, rows, distance)).sum(), rows
    )
    torch.testing.assert_close(found.double(), expected, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("distance", ["l2", "l2sq"])
def test_neither_direction_of_relevance_holds_a_difference_of_every_pair(distance):
    count, dim, sizes = 40, 24, {}

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            sizes[str(function)] = max(tensor.numel() for tensor in tree_leaves(found))
            return found

    embeddings = unit_rows(count, dim, seed=0).float().requires_grad_()
    with Sizes():
        distance_relevance(embeddings, embeddings, distance).sum().backward()
    assert "cdist_backward" not in " ".join(sizes)  # on a GPU it holds all differences inside
    assert {"aten.mm.default", "aten._cdist_forward.default"} <= sizes.keys()
    assert max(sizes.values()) == count * max(count, dim)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_intra_modal_scores_are_the_loop(count):
    embeddings = unit_rows(count, 5, seed=count)
    found = intra_modal(embeddings)
    close(found.closeness, [[x @ y for y in embeddings] for x in embeddings])
    close(found.relevance, naive_relevance(embeddings, embeddings))


@pytest.mark.parametrize("case", BATCHES)
def test_the_cross_modal_relation_adds_the_mean_match_to_an_mlp_of_the_largest(case):
    words, lengths, regions, topk = fragments(case, seed=3)
    module = CrossModalRelation(topk)
    torch.nn.init.normal_(module.mlp_i2t[0].weight, generator=torch.Generator().manual_seed(0))
    found_i2t, found_t2i = module(regions, words, lengths)
    t2i, i2t = fragment_matches(words, lengths, regions, topk)
    for found, (mean, largest), mlp in (
        (found_t2i, t2i, module.mlp_t2i),
        (found_i2t, i2t, module.mlp_i2t),
    ):
        hidden = (largest @ mlp[0].weight.T + mlp[0].bias).clamp(min=0)
        close(
            found.relevance.detach(),
            (hidden @ mlp[2].weight[0] + mlp[2].bias + mean).detach(),
            absolute=1e-5,
        )
        assert torch.equal(found.closeness, mean)


def test_the_two_mlps_start_equal_and_are_two():
    module = CrossModalRelation(topk=6)
    for ours, other in zip(module.mlp_t2i.parameters(), module.mlp_i2t.parameters(), strict=True):
        assert torch.equal(ours, other) and ours.data_ptr() != other.data_ptr()
    assert not torch.equal(module.mlp_t2i[0].weight, CrossModalRelation(6).mlp_t2i[0].weight)


def test_gradient_of_the_cross_modal_relation_reaches_the_mlps_alone():
    words, lengths, regions, topk = fragments("some shorter than K")
    words.requires_grad_(), regions.requires_grad_()
    module = CrossModalRelation(topk)
    i2t, t2i = module(regions, words, lengths)
    ((i2t.relevance + 2 * t2i.relevance.T) * normal(4, 4, seed=1)).sum().backward()
    assert words.grad is None and regions.grad is None
    assert all(parameter.grad.any() for parameter in module.parameters())


def encoded(embedding, parts, lengths):
    return Encoded(embedding, 3 * embedding + 1, parts, lengths)


def test_the_four_blocks_are_of_the_normalised_embeddings_and_of_the_fragments():
    words, lengths, regions, topk = fragments("not sorted")
    u, w = unit_rows(5, 6, seed=1), unit_rows(5, 6, seed=2)
    module = InstanceRelations(topk, threshold=0.4)
    found = module(encoded(u, regions, torch.full((5,), 5)), encoded(w, words, lengths))
    for block, embeddings in ((found.i2i, u), (found.t2t, w)):
        close(block.relevance, naive_relevance(embeddings, embeddings))
        assert block.connection.tolist() == naive_connection(embeddings @ embeddings.T, 0.4)
    for block, (mean, _) in zip(
        (found.t2i, found.i2t), fragment_matches(words, lengths, regions, topk)
    ):
        assert block.connection.tolist() == naive_connection(mean, 0.4)
