"""--mask_padding 1: padded regions count nowhere,
neither in batch norm nor in pooling nor in the relations."""

import pytest
import torch
from helpers import close
from published import make_model, make_objective
from test_encoders import (
    REGION_DIM,
    image_encoder,
    images,
    naive_fragments,
    naive_pooled,
    tiny_bert,
)
from test_relation import BATCHES, BLOCKS, FLOAT32, fragments, naive_pair

from lib.data.batches import Batch
from lib.model.encoders import Encoded
from lib.model.matches import BlockLimits
from lib.model.pooling import real_mask
from lib.objective import relation
from lib.objective.relation import InstanceRelations, fragment_matches
from lib.training import engine, optim

LENGTHS = [[6, 6, 6], [6, 3, 1], [2, 5], [1, 1]]


def padded(regions, lengths, more, junk=0.0):
    """The same regions with `more` rows of padding, and `junk` in all padding."""
    longer = torch.nn.functional.pad(regions, (0, 0, 0, more))
    return longer.masked_fill(~real_mask(lengths, longer.size(1)).unsqueeze(2), junk)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_batch_norm_counts_true_regions_alone(lengths):
    encoder = image_encoder(mask_padding=True).train()
    norm, before = (
        encoder.mlp[1],
        [encoder.mlp[1].running_mean.clone(), encoder.mlp[1].running_var.clone()],
    )
    regions, lengths = images(lengths)
    hidden = torch.stack(
        [encoder.mlp[0](row) for rows, n in zip(regions, lengths.tolist()) for row in rows[:n]]
    )
    mean = sum(hidden) / len(hidden)
    variance = sum((row - mean) ** 2 for row in hidden) / len(hidden)
    expected = naive_fragments(encoder, regions, mean, variance)
    expected = expected.masked_fill(~real_mask(lengths, 6).unsqueeze(2), 0)
    found = encoder(regions, lengths)
    close(found.fragments, expected)
    close(found.unnormalised, naive_pooled(encoder.fragment_relation, expected, lengths))
    close(norm.running_mean, 0.9 * before[0] + 0.1 * mean)
    close(norm.running_var, 0.9 * before[1] + 0.1 * variance * len(hidden) / (len(hidden) - 1))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_junk_and_more_padding_change_nothing_of_an_image(lengths, training):
    regions, lengths = images(lengths)
    found = [
        (encoder, encoder(padded(regions, lengths, more, junk), lengths))
        for more, junk in ((0, 0.0), (0, 50.0), (7, 0.0), (3, float("nan")))
        for encoder in [image_encoder(mask_padding=True).train(training)]
    ]
    (first, expected), *others = found
    for encoder, other in others:
        close(other.embedding, expected.embedding, 2e-6)
        close(other.fragments[:, :6], expected.fragments, 2e-6)
        assert not other.fragments[:, 6:].any()
        for ours, theirs in zip(encoder.buffers(), first.buffers()):
            close(ours, theirs, 2e-6)


def test_images_without_padding_are_encoded_as_published():
    for training in (True, False):
        ours, published = (
            image_encoder(mask_padding=mask).train(training)(*images([6, 6]))
            for mask in (True, False)
        )
        assert torch.equal(ours.embedding, published.embedding) and torch.equal(
            ours.fragments, published.fragments
        )


@pytest.mark.parametrize("more", [0, 4])
def test_gradient_of_images_does_not_depend_on_their_padding(more):
    gradients = []
    for extra, junk in ((0, 0.0), (more, 50.0)):
        encoder, (regions, lengths) = image_encoder(mask_padding=True).train(), images([6, 3, 1])
        loss = encoder(padded(regions, lengths, extra, junk), lengths).embedding[:, :3].sum()
        gradients.append(
            torch.autograd.grad(
                loss, [p for n, p in encoder.named_parameters() if n != "mlp.0.bias"]
            )
        )
    for plain, other in zip(*gradients):
        assert plain.any()
        close(other, plain, 1e-5)


def region_lengths(case):
    """Lengths from 1 to R, at least one of them R."""
    lengths, _, num_regions, _ = BATCHES[case]
    return torch.tensor([num_regions - (place * 2) % num_regions for place in range(len(lengths))])


def naive_matches(words, lengths, regions, topk, counted):
    """As `fragment_matches`, a pair at a time, of the true regions alone."""
    pairs = [
        [
            naive_pair(w[:].tolist(), int(n), r[: int(m)].tolist(), topk)
            for r, m in zip(regions, counted)
        ]
        for w, n in zip(words, lengths)
    ]
    t2i = [[[pair[0][part] for pair in row] for row in pairs] for part in (0, 1)]
    i2t = [
        [[row[image][1][part] for row in pairs] for image in range(len(regions))] for part in (0, 1)
    ]
    return [
        [torch.tensor(part, dtype=torch.float32) for part in direction] for direction in (t2i, i2t)
    ]


@pytest.mark.parametrize("limits", BLOCKS)
@pytest.mark.parametrize("case", BATCHES)
def test_matches_are_the_loop_over_true_regions_however_blocks_are_cut(monkeypatch, case, limits):
    monkeypatch.setitem(relation.BLOCKS, "cpu", BlockLimits(*limits))
    inputs = *fragments(case, seed=len(case)), region_lengths(case)
    for found, expected in zip(fragment_matches(*inputs), naive_matches(*inputs)):
        close(found.mean, expected[0], FLOAT32)
        close(found.largest, expected[1], FLOAT32)


@pytest.mark.parametrize(
    "case", ["all longer than K", "some shorter than K", "fewer regions than K", "two pairs"]
)
@pytest.mark.parametrize("more, junk", [(0, 50.0), (5, 0.0), (3, -9.0), (2, float("nan"))])
def test_junk_and_more_padding_change_no_match(case, more, junk):
    words, lengths, regions, topk = fragments(case)
    counted = region_lengths(case)
    before = fragment_matches(words, lengths, regions, topk, counted)
    after = fragment_matches(words, lengths, padded(regions, counted, more, junk), topk, counted)
    for old, new in zip(before, after):
        close(new.mean, old.mean, FLOAT32)
        close(new.largest, old.largest, FLOAT32)


def test_without_padding_the_matches_are_the_published_ones():
    words, lengths, regions, topk = fragments("some shorter than K")
    published = fragment_matches(words, lengths, regions, topk)
    for old, new in zip(
        published, fragment_matches(words, lengths, regions, topk, torch.full((4,), 5))
    ):
        assert torch.equal(old.mean, new.mean) and torch.equal(old.largest, new.largest)


def test_the_relations_of_a_batch_leave_padding_out_where_they_are_told_to():
    words, lengths, regions, topk = fragments("two pairs")
    u = torch.nn.functional.normalize(
        torch.randn(2, 6, generator=torch.Generator().manual_seed(0)), dim=1
    )
    counted, found = region_lengths("two pairs"), {}
    for mask_padding in (True, False):
        module = InstanceRelations(topk, 0.4, mask_padding=mask_padding)
        torch.nn.init.constant_(module.cross_modal.mlp_i2t[2].weight, 0)
        images_, captions = Encoded(u, u, regions, counted), Encoded(u, u, words, lengths)
        with torch.no_grad():
            bias = module.cross_modal.mlp_i2t[2].bias
            found[mask_padding] = module(images_, captions).i2t.relevance - bias
    close(found[True], fragment_matches(words, lengths, regions, topk, counted)[1].mean, FLOAT32)
    close(found[False], fragment_matches(words, lengths, regions, topk)[1].mean, FLOAT32)
    assert not torch.allclose(found[True], found[False], atol=1e-3)


def batch_of(more=0, junk=0.0):
    regions, lengths = images([6, 3, 5, 1])
    pieces = torch.randint(1, 90, (4, 7), generator=torch.Generator().manual_seed(0))
    piece_lengths = torch.tensor([7, 6, 4, 3])
    pieces = pieces.masked_fill(~real_mask(piece_lengths, 7), 0)
    return Batch(
        padded(regions, lengths, more, junk), lengths, pieces, piece_lengths, torch.arange(4)
    )


def step(batch, mask_padding=True):
    """One optimisation step with the graph. Returns its report and the parameters after it."""
    torch.manual_seed(0)
    settings = dict(embed_size=16, nhead=4, dropout=0.0, mask_padding=int(mask_padding))
    model = make_model(tiny_bert(), REGION_DIM, **settings).train()
    objective = make_objective(topk=4, base_loss="vse", gnn_loss="vse", **settings)
    optimizer = optim.build(model, objective, 1e-3)
    report = engine.training_step(model, objective, optimizer, batch, use_graph=True)
    return report, [value for part in (model, objective) for value in part.state_dict().values()]


@pytest.mark.parametrize("more, junk", [(5, 0.0), (0, 3.0), (2, -40.0)])
def test_a_training_step_does_not_see_padded_regions(more, junk):
    expected, found = step(batch_of())[0], step(batch_of(more, junk))[0]
    assert found.is_finite and found.terms.keys() == expected.terms.keys()
    for name, term in expected.terms.items():
        torch.testing.assert_close(found.terms[name], term, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.gradient_norm, expected.gradient_norm, atol=1e-5, rtol=1e-4)


def test_as_published_a_training_step_sees_them():
    plain, found = (step(batch, mask_padding=False)[0] for batch in (batch_of(), batch_of(more=5)))
    assert abs(plain.loss - found.loss) > 1e-3
