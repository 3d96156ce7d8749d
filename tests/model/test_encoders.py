"""Both encoders against a sample at a time without padding,
and what padding may and may not change."""

import math

import pytest
import torch
from helpers import close
from published import make_model, small_bert

from lib.data.batches import Batch
from lib.model.encoders import ImageEncoder, TextEncoder
from lib.model.pooling import real_mask

DIM, HEADS, REGION_DIM, VOCABULARY = 16, 4, 12, 90
LENGTHS = [[9, 7, 7, 4, 3, 3], [5], [2, 6, 3], [4, 4, 4], [14, 2]]


def tiny_bert(**changes):
    return small_bert(
        **(
            dict(
                vocab_size=VOCABULARY,
                hidden_size=24,
                num_hidden_layers=2,
                num_attention_heads=3,
                intermediate_size=32,
            )
            | changes
        )
    )


def text_encoder(seed=0, **options):
    torch.manual_seed(seed)
    return TextEncoder(tiny_bert(), DIM, HEADS, **(dict(dropout=0.0) | options))


def image_encoder(seed=0, **options):
    torch.manual_seed(seed)
    encoder = ImageEncoder(REGION_DIM, DIM, HEADS, **(dict(dropout=0.0) | options))
    norm = encoder.mlp[1]
    # away from 1 and 0
    for parameter in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        parameter.data += torch.rand_like(parameter)
    return encoder


def captions(lengths, longest=None, seed=0):
    lengths = torch.tensor(lengths)
    longest = longest or int(lengths.max())
    pieces = torch.randint(
        1, VOCABULARY, (len(lengths), longest), generator=torch.Generator().manual_seed(seed)
    )
    return pieces.masked_fill(~real_mask(lengths, longest), 0), lengths


def images(lengths, num_regions=6, seed=0):
    lengths = torch.tensor(lengths)
    regions = torch.randn(
        len(lengths), num_regions, REGION_DIM, generator=torch.Generator().manual_seed(seed)
    )
    return regions.masked_fill(~real_mask(lengths, num_regions).unsqueeze(2), 0), lengths


def naive_pooled(relation, fragments, lengths):
    """v of every sample, from its true fragments alone."""
    rows = []
    for sample, length in zip(fragments, lengths.tolist()):
        sample = sample[:length]
        residual = sample.sort(dim=0, descending=True).values[:2].mean(0)
        related = relation.layer(sample[None])[0].mean(0)
        rows.append(0.8 * residual + 0.2 * related)
    return torch.stack(rows)


def naive_fragments(encoder, regions, mean, variance):
    """h = W_s x + b_s + W_2 relu(BN(W_1 x + b_1)) + b_2, a region at a time,
    with these statistics of BN."""
    first, norm, _, last = encoder.mlp
    found = torch.zeros(*regions.shape[:2], DIM)
    for image, rows in enumerate(regions):
        for place, region in enumerate(rows):
            hidden = first.weight @ region + first.bias
            hidden = (hidden - mean) / (variance + 1e-5).sqrt() * norm.weight + norm.bias
            straight = encoder.projection.weight @ region + encoder.projection.bias
            found[image, place] = straight + last.weight @ hidden.clamp(min=0) + last.bias
    return found


def trained(encoder):
    """Parameters whose true gradient is not zero: biases of keys cancel in the softmax,
    one before BN there."""
    return [
        parameter
        for name, parameter in encoder.named_parameters()
        if not name.endswith("self.key.bias") and name != "mlp.0.bias"
    ]


def check_normalised(encoded):
    close(
        encoded.embedding,
        encoded.unnormalised / (encoded.unnormalised.norm(dim=1, keepdim=True) + 1e-8),
    )
    close(encoded.embedding.norm(dim=1), torch.ones(len(encoded.embedding)))


@pytest.mark.parametrize("least_pieces", [None, 0, 5, 100])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_the_text_encoder_is_bert_on_the_padded_batch_then_pooling_by_caption(
    lengths, least_pieces
):
    encoder = text_encoder()
    pieces, lengths = captions(lengths, longest=15)
    whole = encoder.projection(
        encoder.bert(pieces, attention_mask=(pieces != 0).long()).last_hidden_state
    )
    found = encoder(pieces, lengths, least_pieces)
    close(found.unnormalised, naive_pooled(encoder.fragment_relation, whole, lengths))
    check_normalised(found)
    least = 15 if least_pieces is None else min(least_pieces, 15)
    for fragments, expected, length in zip(found.fragments, whole, lengths.tolist()):
        computed = max(length, least)
        close(fragments[:computed], expected[:computed])
        assert not fragments[computed:].any() and len(fragments) == 15
    assert found.lengths is lengths


@pytest.mark.parametrize("lengths", LENGTHS)
def test_a_caption_is_encoded_alike_alone_and_in_any_batch(lengths):
    encoder = text_encoder()
    pieces, lengths = captions(lengths)
    together, padded = (
        encoder(pieces, lengths),
        encoder(torch.nn.functional.pad(pieces, (0, 9)), lengths),
    )
    close(padded.embedding, together.embedding)
    for which, length in enumerate(lengths.tolist()):
        alone = encoder(pieces[which : which + 1, :length], lengths[which : which + 1])
        close(together.embedding[which], alone.embedding[0])
        close(together.fragments[which, :length], alone.fragments[0])


def test_gradient_of_captions_does_not_depend_on_how_much_padding_is_computed():
    encoder = text_encoder()
    pieces, lengths = captions([9, 5, 3])
    gradients = []
    for least_pieces in (None, 0, 6):
        loss = encoder(pieces, lengths, least_pieces).embedding[:, :3].sum()
        gradients.append(torch.autograd.grad(loss, trained(encoder)))
    for whole, none, some in zip(*gradients):
        close(none, whole)
        close(some, whole)
        assert whole.any()


@pytest.mark.parametrize("normalise_captions", [False, True])
@pytest.mark.parametrize("normalise_images", [False, True])
def test_each_side_is_normalised_or_not_on_its_own(normalise_images, normalise_captions):
    model = make_model(
        tiny_bert(),
        REGION_DIM,
        embed_size=DIM,
        nhead=HEADS,
        no_imgnorm=not normalise_images,
        no_txtnorm=not normalise_captions,
    )
    batch = Batch(*images([6, 4]), *captions([5, 4]), torch.arange(2))
    for encoded, normalise in zip(model.eval()(batch), (normalise_images, normalise_captions)):
        if normalise:
            check_normalised(encoded)
        assert torch.equal(encoded.embedding, encoded.unnormalised) is not normalise


@pytest.mark.parametrize("hidden_size", [12, 24])
def test_the_hidden_size_is_that_of_the_bert(hidden_size):
    encoder = TextEncoder(tiny_bert(hidden_size=hidden_size), DIM, HEADS)
    assert encoder.projection.weight.shape == (DIM, hidden_size)
    assert encoder(*captions([5, 4])).embedding.shape == (2, DIM)


@pytest.mark.parametrize("lengths", [[6, 6, 6], [6, 3, 1], [2, 5]])
def test_batch_norm_counts_padded_regions(lengths):
    encoder = image_encoder().train()
    norm, before = (
        encoder.mlp[1],
        [encoder.mlp[1].running_mean.clone(), encoder.mlp[1].running_var.clone()],
    )
    regions, lengths = images(lengths)
    hidden = torch.stack([encoder.mlp[0](region) for image in regions for region in image])
    mean = sum(hidden) / len(hidden)
    variance = sum((row - mean) ** 2 for row in hidden) / len(hidden)
    expected = naive_fragments(encoder, regions, mean, variance)
    found = encoder(regions, lengths)
    close(found.fragments, expected)
    close(found.unnormalised, naive_pooled(encoder.fragment_relation, expected, lengths))
    check_normalised(found)
    close(norm.running_mean, 0.9 * before[0] + 0.1 * mean)
    close(norm.running_var, 0.9 * before[1] + 0.1 * variance * len(hidden) / (len(hidden) - 1))


@pytest.mark.parametrize("lengths", [[6, 6, 6], [6, 3, 1], [1]])
def test_images_in_evaluation_are_the_loop_over_regions(lengths):
    encoder = image_encoder().eval()
    regions, lengths = images(lengths)
    expected = naive_fragments(
        encoder, regions, encoder.mlp[1].running_mean, encoder.mlp[1].running_var
    )
    for with_gradient in (True, False):
        with torch.set_grad_enabled(with_gradient):
            found = encoder(regions, lengths)
        close(found.fragments, expected)
        close(found.unnormalised, naive_pooled(encoder.fragment_relation, expected, lengths))


def test_one_image_of_one_region_is_encoded():
    found = image_encoder().eval()(*images([1], num_regions=1))
    check_normalised(found)
    assert found.fragments.shape == (1, 1, DIM)


def test_junk_in_padded_regions_reaches_no_embedding_in_evaluation():
    encoder = image_encoder().eval()
    regions, lengths = images([6, 3, 1])
    is_padding = ~real_mask(lengths, 6)
    clean, spoilt = (
        encoder(regions, lengths),
        encoder(regions.masked_fill(is_padding.unsqueeze(2), 9.0), lengths),
    )
    close(spoilt.embedding, clean.embedding)
    assert ((spoilt.fragments != clean.fragments).any(2) == is_padding).all()


def test_junk_in_padded_regions_moves_the_batch_norm_in_training():
    encoder = image_encoder().train()
    regions, lengths = images([6, 3, 1])
    is_padding = ~real_mask(lengths, 6)
    clean, spoilt = (
        encoder(regions, lengths),
        encoder(regions.masked_fill(is_padding.unsqueeze(2), 9.0), lengths),
    )
    assert not torch.allclose(spoilt.embedding[0], clean.embedding[0], atol=1e-4)


@pytest.mark.parametrize("side", ["text", "image"])
def test_training_and_evaluation_agree_without_dropout(side):
    encoder, inputs = (
        (text_encoder(), captions([9, 5, 3]))
        if side == "text"
        else (image_encoder(), images([6, 3, 1]))
    )
    if side == "image":
        encoder.mlp[1] = torch.nn.Identity()
    trained = encoder.train()(*inputs)
    for with_gradient in (True, False):
        with torch.set_grad_enabled(with_gradient):
            evaluated = encoder.eval()(*inputs)
        for ours, other in zip(evaluated[:3], trained):
            close(ours, other)


@pytest.mark.parametrize("side", ["text", "image"])
def test_dropout_acts_in_training_alone(side):
    encoder, inputs = (
        (text_encoder(dropout=0.5), captions([9, 5, 3]))
        if side == "text"
        else (image_encoder(dropout=0.5), images([6, 3, 1]))
    )
    assert not torch.equal(*(encoder.train()(*inputs).embedding for _ in range(2)))
    assert torch.equal(*(encoder.eval()(*inputs).embedding for _ in range(2)))


@pytest.mark.parametrize("side", ["text", "image"])
def test_fragments_carry_no_gradient_and_the_embedding_reaches_every_parameter(side):
    encoder, inputs = (
        (text_encoder(), captions([9, 5, 3]))
        if side == "text"
        else (image_encoder(), images([6, 3, 1]))
    )
    found = encoder(*inputs)
    assert not found.fragments.requires_grad
    weights = torch.arange(3 * DIM).view(3, DIM).sin()
    gradients = torch.autograd.grad((weights * found.embedding).sum(), trained(encoder))
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)


@pytest.mark.parametrize("side", ["text", "image"])
def test_embeddings_are_float32_whatever_the_encoder_ran_in(side):
    encoder, inputs = (
        (text_encoder(), captions([9, 5, 3]))
        if side == "text"
        else (image_encoder(), images([6, 3, 1]))
    )
    exact = encoder.eval()(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = encoder(*inputs)
    assert found.embedding.dtype == found.unnormalised.dtype == torch.float32
    assert not torch.equal(found.embedding, exact.embedding)
    close(found.embedding, exact.embedding, absolute=0.05)
    close(found.embedding.norm(dim=1), torch.ones(3))


def test_linear_maps_of_images_start_xavier_uniform_with_zero_biases():
    encoder = ImageEncoder(200, 300, HEADS)
    for linear in (encoder.projection, encoder.mlp[0], encoder.mlp[3]):
        bound = math.sqrt(6 / (linear.in_features + linear.out_features))
        assert 0.99 * bound < linear.weight.abs().max() <= bound
        assert abs(linear.weight.std() - bound / math.sqrt(3)) < 0.02 * bound
        assert not linear.bias.any()
    assert (encoder.mlp[0].out_features, encoder.mlp[3].in_features) == (150, 150)


@pytest.mark.parametrize("mask_padding", [False, True])
@pytest.mark.parametrize("pooling", ["maxk+relation", "gpo", "mean"])
def test_a_view_is_the_image_without_the_regions_that_it_does_not_see(pooling, mask_padding):
    encoder = image_encoder(pooling=pooling, mask_padding=mask_padding).eval()
    regions, lengths = images([6, 4, 1])
    views = torch.rand(3, 2, 6, generator=torch.Generator().manual_seed(1)) < 0.6
    views = (views | (torch.arange(6) == 0)) & real_mask(lengths, 6).unsqueeze(1)
    found = encoder(regions, lengths, views)
    for view, embedding in zip(views.unbind(1), (found.embedding, found.second_view)):
        for image, (seen, ours) in enumerate(zip(view, embedding)):
            alone = regions[image, seen][None]
            close(ours, encoder(alone, torch.tensor([alone.size(1)])).embedding[0])
    whole = encoder(regions, lengths)
    assert torch.equal(found.fragments, whole.fragments) and found.lengths is lengths
    assert whole.second_view is None and not torch.allclose(found.embedding, found.second_view)


def test_two_views_are_projected_once():
    """Batch norm has the statistics of all regions, once."""
    encoder, (regions, lengths) = image_encoder(), images([6, 4])
    views = real_mask(lengths, 6).unsqueeze(1).expand(-1, 2, -1)
    found, norm = encoder(regions, lengths, views), encoder.mlp[1]
    assert int(norm.num_batches_tracked) == 1
    close(found.embedding, encoder(regions, lengths).embedding)
    close(found.second_view, found.embedding)
    found.second_view.sum().backward()
    assert encoder.mlp[0].weight.grad.any()
