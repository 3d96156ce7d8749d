"""Exported embeddings, their ids and their README."""

import json

import numpy as np
import pytest
import torch
from damage import OPTIONS
from helpers import evaluate

import train
from lib.data.layout import read_lines
from lib.evaluation import metrics
from lib.evaluation.similarity import Similarity
from lib.evaluation.table import markdown, scores_by_label
from lib.system.errors import InputError


@pytest.mark.parametrize("split", ["test", "dev"])
def test_exported_embeddings_give_the_table_again(copied, whole, tmp_path, split):
    folder = tmp_path / "new" / "export"
    evaluate("--model_path", copied, "--export", folder, "--split", split)
    images, captions = (
        np.load(folder / f"{name}_embeddings.npy", allow_pickle=False)
        for name in ("image", "caption")
    )
    assert (
        images.dtype == captions.dtype == np.float32
        and images.shape == (10, 16)
        and captions.shape == (50, 16)
    )
    for rows_of in (images, captions):
        np.testing.assert_allclose(np.linalg.norm(rows_of, axis=1), 1, atol=1e-5)
    found = scores_by_label(Similarity(torch.from_numpy(images), torch.from_numpy(captions)), split)
    entry = json.loads((copied / "metrics.json").read_text())[split]["scores"]
    for label, scores in found.items():
        assert entry[label]["i2t"] == scores.image_to_text._asdict()
        assert entry[label]["t2i"] == scores.text_to_image._asdict()
        assert entry[label]["rsum"] == scores.rsum
    assert markdown(found) in (folder / "README.md").read_text()
    assert "Rows have unit length." in (folder / "README.md").read_text()
    assert (folder / "image_ids.txt").read_text() == (
        whole / "demo_precomp" / f"{split}_ids.txt"
    ).read_text()
    assert [int(line) for line in read_lines(folder / "caption_images.txt")] == [
        n // 5 for n in range(50)
    ]
    assert read_lines(folder / "captions.txt") == read_lines(
        whole / "demo_precomp" / f"{split}_caps.txt"
    )


def test_an_export_lists_its_files(copied, tmp_path):
    evaluate("--model_path", copied, "--export", tmp_path / "export")
    text = (tmp_path / "export" / "README.md").read_text()
    assert all(
        f"`{path.name}`" in text
        for path in (tmp_path / "export").iterdir()
        if path.name != "README.md"
    )
    with pytest.raises(InputError, match="not empty"):
        evaluate("--model_path", copied, "--export", tmp_path / "export")


def test_an_export_of_a_model_that_does_not_normalise_says_so(whole, tmp_path):
    argv = [
        *OPTIONS,
        "--data_path",
        str(whole),
        "--logger_name",
        str(tmp_path / "run"),
        "--no_txtnorm",
    ]
    train.main(argv)
    evaluate("--model_path", tmp_path / "run", "--export", tmp_path / "export")
    assert "Rows do not have unit length" in (tmp_path / "export" / "README.md").read_text()
    captions = np.load(tmp_path / "export" / "caption_embeddings.npy")
    assert not np.allclose(np.linalg.norm(captions, axis=1), 1, atol=1e-2)
    images = np.load(tmp_path / "export" / "image_embeddings.npy")
    table = metrics.scores(metrics.ranks(images @ captions.T))
    assert markdown({"10": table}) in (tmp_path / "run" / "test.md").read_text()
