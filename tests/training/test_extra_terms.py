"""Terms beside the losses of pairs, in whole runs."""

import argparse

import pytest
import torch
from helpers import Stopped, fit, make_data, read, same, stop_at_step
from published import small_bert
from torch import nn

from lib.data.captions import SpecialIds
from lib.model.saved_bert import SavedBert
from lib.system.errors import InputError
from lib.training.run_parts import frozen_words

OPTIONS = (
    "--dataset demo --num_epochs 1 --batch_size 30 --embed_size 16 --nhead 2 --interaction none "
    "--base_loss infonce --workers 0 --save_results 0 --save_step 1 --log_step 1 "
    "--soft_labels 2 --decorrelation 0.01"
).split()
SPECIAL = SpecialIds(start=5, end=6, mask=7, vocabulary_size=90)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory, train=24, dev=10, test=10)  # four steps


def test_a_run_logs_the_terms_and_goes_on_bit_for_bit(data, tmp_path, monkeypatch):
    whole = fit(OPTIONS, data, tmp_path / "whole")
    log = (whole / "train.txt").read_text().splitlines()[-1]
    assert "decorrelation " in log and "soft_labels " in log
    with monkeypatch.context() as patched:
        stop_at_step(patched, 2)
        with pytest.raises(Stopped):
            fit(OPTIONS, data, tmp_path / "run")
    fit(OPTIONS, data, tmp_path / "run", "--resume", "auto")
    ours, theirs = (read(tmp_path / name, "last.pth") for name in ("run", "whole"))
    for part in ("model", "objective", "optimizer"):
        assert same(ours[part], theirs[part]), part
    assert ours["objective"].keys() == {"infonce.log_scale", "soft_labels.log_scale"}


def options(weight=1.0):
    return argparse.Namespace(soft_labels=weight, bert_path="gone")


@pytest.mark.parametrize("reader", [nn.Embedding(90, 4), small_bert(vocab_size=90)])
def test_frozen_words_are_a_copy_without_special_pieces(reader):
    weight = next(reader.parameters())
    expected = weight.detach().clone()
    expected[[0, 5, 6, 7]] = 0
    found = frozen_words(options(), reader, "path", SPECIAL)
    nn.init.zeros_(weight)
    assert torch.equal(found, expected) and not found.requires_grad
    assert frozen_words(options(0.0), reader, "path", SPECIAL) is None


def test_a_bert_without_its_pretrained_weights_has_no_soft_labels():
    kept = SavedBert(*[None] * len(SavedBert._fields))
    with pytest.raises(InputError, match="--soft_labels 1.0: .* --bert_path gone"):
        frozen_words(options(), nn.Embedding(90, 4), kept, SPECIAL)
