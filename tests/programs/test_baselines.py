"""What may stand in for the published encoders: other poolings,
and a bidirectional GRU for BERT."""

import math
from functools import partial

import helpers
import pytest
import torch
from helpers import normal
from published import make_model, make_objective, small_bert

from lib.data.batches import Batch
from lib.data.vocabulary import Vocabulary, word_embeddings
from lib.model.encoders import ImageEncoder, RecurrentTextEncoder, TextEncoder
from lib.model.fragment import FragmentRelation
from lib.model.options import POOLINGS
from lib.model.pooling import GeneralizedPooling, rank_encodings, real_mask
from lib.training import optim

DIM, HEADS, REGION_DIM, WORD_DIM = 8, 2, 6, 5
BATCHES = {  # true lengths, longest first, and the fragments they are padded to
    "full": ([4, 4, 4], 4),
    "ragged": ([7, 5, 5, 2, 1], 7),
    "padded beyond the longest": ([3, 1], 8),
    "one fragment": ([1, 1], 1),
    "one sample": ([5], 5),
}
VOCABULARY = Vocabulary([f"w{number}" for number in range(30)])


close = partial(helpers.close, absolute=2e-6)


def batch(name, dim=DIM):
    lengths, longest = BATCHES[name]
    return normal(len(lengths), longest, dim, seed=len(name)), torch.tensor(lengths)


def gpo(seed=0):
    torch.manual_seed(seed)
    pool = GeneralizedPooling()
    pool.score.weight.data *= 20  # weights far from those of a mean
    return pool


def naive_gru(gru, rows):
    """Both directions' states at every place, side by side, from the equations of a GRU cell."""

    def run(rows, suffix):
        names = (f"{name}_l0{suffix}" for name in ("weight_ih", "bias_ih", "weight_hh", "bias_hh"))
        w_x, b_x, w_h, b_h = (getattr(gru, name) for name in names)
        state, states = torch.zeros(gru.hidden_size), []
        for row in rows:
            (reset_x, keep_x, new_x), (reset_h, keep_h, new_h) = (
                (w_x @ row + b_x).chunk(3),
                (w_h @ state + b_h).chunk(3),
            )
            keep = (keep_x + keep_h).sigmoid()
            state = (
                keep * state + (1 - keep) * (new_x + (reset_x + reset_h).sigmoid() * new_h).tanh()
            )
            states.append(state)
        return states

    onward, backward = run(rows, ""), run(rows.flip(0), "_reverse")[::-1]
    return torch.stack([torch.cat(pair) for pair in zip(onward, backward)])


def naive_theta(pool, length):
    encodings = [
        [wave(rank / 10000 ** (2 * j / 32)) for wave in (math.sin, math.cos) for j in range(16)]
        for rank in range(1, length + 1)
    ]
    scores = (naive_gru(pool.gru, torch.tensor(encodings)) @ pool.score.weight[0]).exp()
    return scores / scores.sum()


def naive_v_res(relation, name, sample):
    """The pooling `name` of the true fragments of one sample, (n, E)."""
    ranked = sample.sort(dim=0, descending=True).values
    if name == "gpo":
        return sum(
            theta * row for theta, row in zip(naive_theta(relation.pool, len(sample)), ranked)
        )
    if name == "attention":
        weights = relation.pool.score(sample).softmax(0)
        return (weights * sample).sum(0)
    counted = dict(max=1, maxk=min(2, len(sample)), mean=len(sample))[name]
    return sum(ranked[:counted]) / counted


def naive_pooled(relation, pooling, fragments, lengths):
    rows = []
    for sample, length in zip(fragments, lengths.tolist()):
        v = naive_v_res(relation, pooling.removesuffix("+relation"), sample[:length])
        if pooling.endswith("+relation"):
            v = 0.8 * v + 0.2 * relation.layer(sample[None, :length])[0].mean(0)
        rows.append(v)
    return torch.stack(rows)


def relation_of(pooling, seed=0):
    torch.manual_seed(seed)
    return FragmentRelation(DIM, HEADS, dropout=0.0, pooling=pooling)


def check_gradients(module, loss, without=()):
    """Every parameter of `module` gets a gradient that is finite and not zero."""
    named = {name: value for name, value in module.named_parameters() if not name.endswith(without)}
    gradients = torch.autograd.grad(loss, list(named.values())) if named else []
    for name, gradient in zip(named, gradients):
        assert gradient.isfinite().all() and gradient.any(), name


@pytest.mark.parametrize("name", BATCHES)
def test_the_generalized_pooling_is_the_loop_over_samples(name):
    pool, (fragments, lengths) = gpo(), batch(name)
    expected = torch.stack(
        [
            sum(
                theta * row
                for theta, row in zip(
                    naive_theta(pool, length), sample[:length].sort(0, True).values
                )
            )
            for sample, length in zip(fragments, lengths.tolist())
        ]
    )
    close(pool(fragments, lengths), expected)
    shuffled = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0))
    close(pool(fragments[shuffled], lengths[shuffled]), expected[shuffled])


@pytest.mark.parametrize("name", BATCHES)
def test_its_weights_are_a_distribution_over_the_true_ranks(name):
    lengths, longest = BATCHES[name]
    theta = gpo().weights(torch.tensor(lengths), longest)
    close(theta.sum(1), torch.ones(len(lengths)))
    assert torch.equal(theta > 0, real_mask(torch.tensor(lengths), longest))
    assert longest == 1 or theta[0, : lengths[0]].std() > 0.01


def test_its_gru_runs_once_over_the_lengths_that_differ():
    pool, seen = gpo(), []
    pool.gru.register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0].batch_sizes.tolist())
    )
    pool(normal(6, 9, DIM), torch.tensor([3, 9, 3, 1, 9, 1]))
    assert seen == [[3, 2, 2, 1, 1, 1, 1, 1, 1]]


def test_without_a_score_it_is_the_mean_and_with_one_steep_enough_the_largest():
    pool, (fragments, lengths) = gpo(), batch("ragged")
    pool.weights = lambda lengths, longest: torch.eye(longest)[:1].expand(len(lengths), -1)
    close(
        pool(fragments, lengths),
        torch.stack([s[:n].amax(0) for s, n in zip(fragments, lengths.tolist())]),
    )
    del pool.weights
    pool.score.weight.data.zero_()
    close(
        pool(fragments, lengths),
        torch.stack([s[:n].mean(0) for s, n in zip(fragments, lengths.tolist())]),
    )


def test_ranks_are_told_apart_by_their_encodings():
    encodings = rank_encodings(36, 32)
    assert encodings.shape == (36, 32) and encodings.abs().max() <= 1
    assert (torch.cdist(encodings, encodings) + 9 * torch.eye(36)).min() > 0.5
    close(encodings[:, 0], torch.tensor([math.sin(rank) for rank in range(1, 37)]))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("name", BATCHES)
def test_every_pooling_is_the_loop_over_samples(name, pooling):
    relation, (fragments, lengths) = relation_of(pooling), batch(name)
    close(relation(fragments, lengths), naive_pooled(relation, pooling, fragments, lengths))


@pytest.mark.parametrize("junk", [77.0, float("nan"), float("inf")])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_junk_and_more_padding_change_no_pooling(pooling, junk):
    relation, (fragments, lengths) = relation_of(pooling), batch("ragged")
    found = relation(fragments, lengths)
    padding = ~real_mask(lengths, 7).unsqueeze(2)
    assert torch.equal(relation(fragments.masked_fill(padding, junk), lengths), found)
    close(relation(torch.nn.functional.pad(fragments, (0, 0, 0, 5), value=junk), lengths), found)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradient_of_every_pooling_reaches_each_parameter_and_the_true_fragments_alone(pooling):
    relation, (fragments, lengths) = relation_of(pooling), batch("ragged")
    fragments.requires_grad_()
    loss = (relation(fragments, lengths) * normal(5, DIM, seed=1)).sum()
    (gradient,) = torch.autograd.grad(loss, fragments, retain_graph=True)
    assert gradient.isfinite().all() and not gradient[~real_mask(lengths, 7)].any()
    assert all(sample[:length].any() for sample, length in zip(gradient, lengths.tolist()))
    check_gradients(relation, loss)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_pooling_has_the_parameters_that_it_uses(pooling):
    parts = {name.split(".")[0] for name, _ in relation_of(pooling).named_parameters()}
    assert ("layer" in parts) is pooling.endswith("+relation")
    assert ("pool" in parts) is pooling.startswith(("gpo", "attention"))
    assert parts <= {"layer", "pool"}


def test_the_published_pooling_is_the_first_and_starts_as_it_did():
    assert POOLINGS[0] == "maxk+relation"
    torch.manual_seed(3)
    layer = torch.nn.TransformerEncoderLayer(DIM, HEADS, DIM, batch_first=True)
    found = relation_of("maxk+relation", seed=3).state_dict()
    assert found.keys() == {f"layer.{name}" for name in layer.state_dict()}
    assert all(
        torch.equal(found[f"layer.{name}"], value) for name, value in layer.state_dict().items()
    )


def test_the_two_encoders_pool_with_weights_of_their_own():
    torch.manual_seed(0)
    words = word_embeddings(VOCABULARY, WORD_DIM)
    model = make_model(words, REGION_DIM, embed_size=DIM, nhead=HEADS, pooling="gpo")
    assert (
        model.image_encoder.fragment_relation.layer
        is None
        is model.text_encoder.fragment_relation.layer
    )
    ours, other = (part.fragment_relation.pool.gru.weight_hh_l0 for part in model.children())
    assert ours.shape == (96, 32) and not torch.equal(ours, other)


def words_of(lengths, longest=None, seed=0):
    lengths = torch.tensor(lengths)
    longest = longest or int(lengths.max())
    ids = torch.randint(
        1, len(VOCABULARY), (len(lengths), longest), generator=torch.Generator().manual_seed(seed)
    )
    return ids.masked_fill(~real_mask(lengths, longest), 0), lengths


def recurrent(pooling="maxk+relation", seed=0, **options):
    torch.manual_seed(seed)
    words = word_embeddings(VOCABULARY, WORD_DIM)
    words.weight.data *= 10  # as far apart as trained ones
    return RecurrentTextEncoder(words, DIM, HEADS, **(dict(dropout=0.0, pooling=pooling) | options))


def naive_words(encoder, ids, lengths):
    """Fragments of every caption, its true words alone: the mean of both directions,
    zero beyond."""
    found = []
    for caption, length in zip(ids, lengths.tolist()):
        states = naive_gru(
            encoder.gru,
            torch.stack([encoder.words.weight[word] for word in caption[:length].tolist()]),
        )
        states = (states[:, :DIM] + states[:, DIM:]) / 2
        found.append(torch.cat([states, torch.zeros(ids.size(1) - length, DIM)]))
    return torch.stack(found)


@pytest.mark.parametrize("pooling", ["maxk+relation", "mean", "gpo"])
@pytest.mark.parametrize("name", BATCHES)
def test_the_recurrent_text_encoder_is_the_loop_over_words(name, pooling):
    encoder, (ids, lengths) = recurrent(pooling), words_of(*BATCHES[name])
    expected, found = naive_words(encoder, ids, lengths), encoder(ids, lengths)
    close(found.fragments, expected)
    pooled = naive_pooled(encoder.fragment_relation, pooling, expected, lengths)
    close(found.unnormalised, pooled, absolute=1e-5)
    close(found.embedding, pooled / (pooled.norm(dim=1, keepdim=True) + 1e-8), absolute=1e-5)
    assert not found.fragments.requires_grad and found.lengths is lengths
    assert found.fragments.shape == (*ids.shape, DIM)


def test_no_arithmetic_of_the_gru_goes_into_padding():
    encoder, (ids, lengths), seen = recurrent(), words_of([7, 3, 2, 1], longest=9), []
    encoder.gru.register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0].data.shape)
    )
    encoder(ids, lengths, least_pieces=9)
    assert seen == [(13, WORD_DIM)]


def test_words_beyond_the_length_change_nothing():
    encoder, (ids, lengths) = recurrent("gpo+relation"), words_of([6, 4, 1])
    found = encoder(ids, lengths)
    padded = encoder(
        torch.nn.functional.pad(ids.masked_fill(ids == 0, 7), (0, 4), value=9), lengths
    )
    close(padded.embedding, found.embedding)
    close(padded.fragments[:, :6], found.fragments)
    for which, length in enumerate(lengths.tolist()):
        close(
            encoder(ids[which : which + 1, :length], lengths[which : which + 1]).embedding,
            found.embedding[[which]],
        )


@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradient_reaches_every_parameter_of_the_recurrent_encoder_and_never_the_padding(pooling):
    encoder, (ids, lengths) = recurrent(pooling), words_of([6, 4, 4, 1])
    loss = (encoder(ids, lengths).embedding * normal(4, DIM, seed=1)).sum()
    check_gradients(encoder, loss)
    encoder.zero_grad()
    (encoder(ids, lengths).embedding * normal(4, DIM, seed=1)).sum().backward()
    used = {word for word, row in enumerate(encoder.words.weight.grad) if row.any()}
    assert used == set(ids.flatten().tolist()) - {0}


@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradient_reaches_every_parameter_of_the_published_encoders_with_any_pooling(pooling):
    torch.manual_seed(0)
    bert = small_bert(vocab_size=50, hidden_size=12, num_attention_heads=3, intermediate_size=16)
    images = ImageEncoder(REGION_DIM, DIM, HEADS, dropout=0.0, pooling=pooling)
    captions = TextEncoder(bert, DIM, HEADS, dropout=0.0, pooling=pooling)
    lengths = torch.tensor([6, 4, 4, 2])
    check_gradients(
        images,
        (images(normal(4, 6, REGION_DIM), lengths).embedding * normal(4, DIM)).sum(),
        "mlp.0.bias",
    )
    found = captions(torch.randint(1, 50, (4, 6)), lengths).embedding
    check_gradients(captions, (found * normal(4, DIM)).sum(), "self.key.bias")


@pytest.mark.parametrize("normalise", [False, True])
def test_a_recurrent_encoder_normalises_or_not(normalise):
    found = recurrent(normalise=normalise)(*words_of([5, 2]))
    assert torch.equal(found.embedding, found.unnormalised) is not normalise
    assert not normalise or torch.allclose(found.embedding.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("pooling", ["maxk+relation", "gpo+relation"])
def test_recurrent_embeddings_are_float32_whatever_the_encoder_ran_in(pooling):
    encoder, inputs = recurrent(pooling), words_of([6, 4, 1])
    exact = encoder(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = encoder(*inputs)
    assert found.embedding.dtype == found.unnormalised.dtype == torch.float32
    assert not torch.equal(found.embedding, exact.embedding)
    close(found.embedding, exact.embedding, absolute=0.05)


def test_a_recurrent_encoder_learns_at_the_full_rate():
    torch.manual_seed(0)
    words = word_embeddings(VOCABULARY, WORD_DIM)
    model = make_model(words, REGION_DIM, embed_size=DIM, nhead=HEADS)
    optimizer = optim.build(
        model, make_objective(embed_size=DIM, nhead=HEADS, topk=3), 1e-3, graph_lr_factor=2.0
    )
    assert [(group["name"], group["lr"]) for group in optimizer.param_groups] == [
        ("encoders", 1e-3),
        ("relations", 2e-3),
    ]
    encoders = {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
    assert encoders == {id(parameter) for parameter in model.parameters()}


def test_a_model_reads_a_batch_of_words():
    torch.manual_seed(0)
    words = word_embeddings(VOCABULARY, WORD_DIM)
    model = make_model(words, REGION_DIM, embed_size=DIM, nhead=HEADS).eval()
    ids, lengths = words_of([5, 3])
    pair = Batch(normal(2, 4, REGION_DIM), torch.tensor([4, 4]), ids, lengths, torch.arange(2))
    images, captions = model(pair, least_pieces=3)
    assert images.embedding.shape == captions.embedding.shape == (2, DIM)
    assert torch.equal(captions.embedding, model.text_encoder(ids, lengths).embedding)
