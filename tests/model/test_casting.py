"""Weights that are cast at once against those that autocast casts one by one."""

import functools

import pytest
import torch
from test_optim import batch_of, setting
from torch import nn

from lib.model.casting import call_with_cast_weights, is_compiled, linear_weights


def encoded_and_gradients(model, encode):
    """Embeddings of a batch under autocast, and the gradient of every parameter."""
    model.zero_grad()
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        images, captions = encode(batch_of(), least_pieces=4)
    (images.embedding * captions.embedding).sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    return [images.embedding, captions.embedding], gradients


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_values_and_gradients_are_those_of_autocast_to_the_bit(dropout):
    model, _, _ = setting(dropout=dropout)
    found, gradients = encoded_and_gradients(
        model, functools.partial(call_with_cast_weights, model, torch.bfloat16)
    )
    expected, expected_gradients = encoded_and_gradients(model, model)
    assert all(map(torch.equal, found, expected))
    for name, gradient in expected_gradients.items():
        assert gradients[name].dtype == torch.float32 and torch.equal(gradients[name], gradient)


def test_the_model_keeps_its_own_weights():
    model, _, _ = setting()
    before = dict(model.named_parameters())
    with torch.autocast("cpu", torch.bfloat16):
        call_with_cast_weights(model, torch.bfloat16, batch_of())
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())


def test_what_autocast_leaves_in_float32_is_not_cast():
    model, _, _ = setting()
    names = linear_weights(model)
    others = {name for name, _ in model.named_parameters()} - names.keys()
    assert "image_encoder.projection.weight" in names
    assert "text_encoder.fragment_relation.layer.self_attn.in_proj_weight" in names
    assert all("norm" in name.lower() or "embeddings" in name or "mlp.1" in name for name in others)


def test_a_compiled_module_is_recognised():
    module = nn.Linear(2, 2)
    assert not is_compiled(module)
    module.compile()
    assert is_compiled(module)
