"""Packed forms against the padded ones that transformers and PyTorch compute."""

import pytest
import torch
from published import small_bert

from lib.model.bert import encode_packed
from lib.model.fragment import FragmentRelation
from lib.model.packing import Packing
from lib.model.pooling import real_mask

VOCABULARY = 90
LENGTHS = [[9, 7, 7, 4, 3, 3], [5], [2, 6, 1], [4, 4, 4]]


@pytest.mark.parametrize("lengths", LENGTHS)
def test_packing_keeps_the_true_positions_in_order(lengths):
    padded = torch.randn(len(lengths), 10, 3)
    packing = Packing(torch.tensor(lengths), 10, "cpu")
    packed = packing.pack(padded)
    assert torch.equal(packed, torch.cat([row[:length] for row, length in zip(padded, lengths)]))
    unpacked = packing.unpack(packed)
    for row, before, length in zip(unpacked, padded, lengths):
        assert torch.equal(row[:length], before[:length]) and not row[length:].any()


def tiny_bert(**changes):
    sizes = dict(vocab_size=VOCABULARY, hidden_size=24, num_attention_heads=3, intermediate_size=32)
    return small_bert(**sizes, **changes)


def captions(lengths, longest):
    pieces = torch.randint(1, VOCABULARY, (len(lengths), longest))
    return pieces.masked_fill(~real_mask(torch.tensor(lengths), longest), 0)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("least", [0, 4, 12])
def test_packed_bert_is_bert(lengths, least):
    """Padding of which fragments are asked for is computed as BERT computes it,
    with padding never a key."""
    torch.manual_seed(0)
    bert, pieces = tiny_bert(num_hidden_layers=2).eval(), captions(lengths, 12)
    taken = torch.tensor(lengths).clamp(min=least)
    packing = Packing(taken, 12, "cpu")
    whole = bert(input_ids=pieces, attention_mask=(pieces != 0).long()).last_hidden_state
    packed = encode_packed(bert, pieces, packing)
    torch.testing.assert_close(packed, packing.pack(whole), atol=2e-6, rtol=1e-5)
    weight = bert.encoder.layer[0].attention.self.query.weight
    ours, theirs = (
        torch.autograd.grad(out.square().sum(), weight)[0] for out in (packed, packing.pack(whole))
    )
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_packed_fragments_are_those_of_the_padded_transformer(lengths, training):
    torch.manual_seed(0)
    relation = FragmentRelation(16, heads=4, dropout=0.0).train(training)
    fragments, lengths = (
        torch.randn(len(lengths), 10, 16, requires_grad=True),
        torch.tensor(lengths),
    )
    is_real = real_mask(lengths, 10)
    ours = relation.relate(fragments, lengths)
    theirs = relation.layer(fragments, src_key_padding_mask=~is_real).masked_fill(
        ~is_real[:, :, None], 0
    )
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    if training:
        ours, theirs = (
            torch.autograd.grad(out.pow(3).sum(), fragments)[0] for out in (ours, theirs)
        )
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_dropout_reaches_every_part_of_a_layer():
    """In training two passes differ, in evaluation they do not;
    attention is among what is dropped."""
    torch.manual_seed(0)
    bert = tiny_bert(attention_probs_dropout_prob=0.5)
    pieces, packing = captions([6, 4], 6), Packing(torch.tensor([6, 4]), 6, "cpu")
    assert not torch.equal(
        encode_packed(bert.train(), pieces, packing), encode_packed(bert, pieces, packing)
    )
    assert torch.equal(
        encode_packed(bert.eval(), pieces, packing), encode_packed(bert, pieces, packing)
    )
    relation = FragmentRelation(16, heads=4, dropout=0.5)
    for name in ("dropout", "dropout1", "dropout2"):
        getattr(relation.layer, name).p = 0.0
    fragments, lengths = torch.randn(2, 6, 16), torch.tensor([6, 4])
    assert not torch.equal(
        relation.train().relate(fragments, lengths), relation.relate(fragments, lengths)
    )
    assert torch.equal(
        relation.eval().relate(fragments, lengths), relation.relate(fragments, lengths)
    )
