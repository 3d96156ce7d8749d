"""A trained model put to use from Python: `lib.model.load` and what it gives,
against the evaluation of its run."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from test_programs import as_published

from lib.data.dataset import RetrievalDataset
from lib.data.layout import read_lines
from lib.evaluation import encoding
from lib.model import bert, checkpoint
from lib.results.trained import load
from lib.system.errors import InputError


@pytest.fixture(scope="module")
def data(whole):
    return whole


@pytest.fixture(scope="module")
def run(finished):
    return finished


@pytest.fixture(scope="module")
def model(run):
    return load(run, device="cpu")


@pytest.fixture(scope="module")
def test_data(data):
    folder = data / "demo_precomp"
    return RetrievalDataset(folder, "test", bert.tokeniser(folder / "bert"))


@pytest.fixture(scope="module")
def texts(data):
    return read_lines(data / "demo_precomp" / "test_caps.txt")


def test_embeddings_are_those_of_the_evaluation(model, run, test_data, texts):
    images, captions = (
        model.encode_images(np.load(test_data.regions_path)),
        model.encode_captions(texts),
    )
    assert images.shape == (10, 16) and captions.shape == (50, 16)
    assert images.dtype == captions.dtype == np.float32
    np.testing.assert_array_equal(images, encoding.encode_images(model.model, test_data, "cpu"))
    np.testing.assert_array_equal(captions, encoding.encode_captions(model.model, test_data, "cpu"))
    saved = np.load(run / "results_demo.npy")["sims"]
    np.testing.assert_allclose(images @ captions.T, saved, atol=1e-6)


def test_padding_is_told_by_the_number_of_regions(model, data, texts, tmp_path):
    folder = tmp_path / "padded_precomp"
    folder.mkdir()
    regions = np.load(data / "demo_precomp" / "test_ims.npy")
    counts = np.arange(10, 20, dtype=np.int32)
    for image, count in zip(regions, counts):
        image[count:] = 0
    np.save(folder / "test_ims.npy", regions)
    np.save(folder / "test_num_regions.npy", counts)
    (folder / "test_caps.txt").write_text("\n".join(texts))
    split = RetrievalDataset(folder, "test", model.tokeniser)
    expected = encoding.encode_images(model.model, split, "cpu")
    np.testing.assert_array_equal(model.encode_images(regions, counts), expected)
    regions[0, 30:] = np.nan  # what is padding counts not, whatever it holds
    np.testing.assert_array_equal(model.encode_images(regions, torch.from_numpy(counts)), expected)
    assert np.abs(model.encode_images(regions[1:]) - expected.numpy()[1:]).max() > 1e-3


@pytest.mark.parametrize(
    "counts", [[36] * 9, 36, [0] + [36] * 9, [37] + [36] * 9, [36.0] * 10, ["36"] * 10]
)
def test_other_than_numbers_of_regions_is_refused(model, test_data, counts):
    with pytest.raises(
        InputError, match=r"num_regions: .*found .*expected 10 whole numbers from 1 to 36"
    ):
        model.encode_images(np.load(test_data.regions_path), counts)


def test_rows_have_unit_length(model, test_data, texts):
    for rows in (
        model.encode_images(np.load(test_data.regions_path)),
        model.encode_captions(texts),
    ):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_a_sample_does_not_depend_on_its_neighbours(model, test_data, texts):
    np.testing.assert_allclose(
        model.encode_captions(texts[7:8]), model.encode_captions(texts)[7:8], atol=1e-6
    )
    images = np.concatenate([np.load(test_data.regions_path)] * 14)  # more than one batch
    found = model.encode_images(images)
    np.testing.assert_allclose(
        found.reshape(14, 10, 16), found[None, :10].repeat(14, axis=0), atol=1e-6
    )


@pytest.mark.parametrize(
    "convert", [np.float64, np.float16, torch.from_numpy], ids=["float64", "float16", "tensor"]
)
def test_regions_of_any_float_type_are_taken(model, test_data, convert):
    regions = np.load(test_data.regions_path)
    regions = convert(regions) if convert is torch.from_numpy else regions.astype(convert)
    np.testing.assert_allclose(
        model.encode_images(regions),
        model.encode_images(np.load(test_data.regions_path)),
        atol=2e-3,
    )


def test_any_caption_is_taken(model):
    found = model.encode_captions(["", "DOG " * 500, "Ein Hund läuft, 狗 🐕!", "a dog"])
    assert found.shape == (4, 16) and np.isfinite(found).all()


def test_captions_come_in_any_collection(model):
    expected = model.encode_captions(["a dog", "a cat"])
    for texts in (
        ("a dog", "a cat"),
        (text for text in ["a dog", "a cat"]),
        np.array(["a dog", "a cat"]),
    ):
        np.testing.assert_array_equal(model.encode_captions(texts), expected)
    with pytest.raises(InputError, match="lone surrogates"):
        model.encode_captions(["a \ud800 dog"])


@pytest.mark.parametrize("texts", ["a dog", [], [b"a dog"], ["a dog", None], [["a dog"]], None])
def test_other_than_captions_is_refused(model, texts):
    with pytest.raises(InputError, match="expected a list of at least one string"):
        model.encode_captions(texts)


REGIONS = {
    "another feature size": (np.zeros((2, 36, 64)), r"\(2, 36, 64\).*128 features"),
    "one image": (np.zeros((36, 128)), r"\(36, 128\).*images x regions"),
    "no image": (np.zeros((0, 36, 128)), r"\(0, 36, 128\)"),
    "no region": (np.zeros((2, 0, 128)), r"\(2, 0, 128\)"),
    "a list": ([], "found a list"),
    "strings": (np.full((2, 36, 128), "1"), "values of type <U1, expected real numbers"),
    "complex numbers": (np.zeros((2, 36, 128), complex), "expected real numbers"),
}


@pytest.mark.parametrize("regions, message", REGIONS.values(), ids=REGIONS)
def test_other_than_regions_is_refused(model, regions, message):
    with pytest.raises(InputError, match=message):
        model.encode_images(regions)


def test_tensors_of_a_short_type_are_taken(model, test_data):
    regions = torch.from_numpy(np.load(test_data.regions_path)[:2]).bfloat16()
    np.testing.assert_array_equal(
        model.encode_images(regions), model.encode_images(regions.float())
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e20])
def test_an_image_that_is_not_finite_is_named(model, test_data, value):
    regions = np.concatenate([np.load(test_data.regions_path)] * 14)
    regions[135, 3, 100] = value
    with pytest.raises(InputError, match="image 135 .counted from 0. is damaged"):
        model.encode_images(regions)


def test_a_published_checkpoint_brings_its_sizes_and_takes_a_bert(
    run, data, tmp_path, texts, model
):
    path = tmp_path / "theirs.pth"
    as_published(run, path)
    content = torch.load(path, weights_only=False)
    content["opt"].embed_size, content["opt"].img_dim = 16, 128
    torch.save(content, path)
    theirs = load(path, bert_path=data / "demo_precomp" / "bert", device="cpu")
    np.testing.assert_array_equal(theirs.encode_captions(texts), model.encode_captions(texts))


def test_a_folder_without_a_model_and_a_device_that_is_not_there_are_refused(run, tmp_path):
    with pytest.raises(InputError, match="no such checkpoint"):
        load(tmp_path)
    with pytest.raises(InputError, match="cuda:99"):
        load(run, device="cuda:99")


def test_the_example_of_the_readme_runs(run, data, monkeypatch, tmp_path, capsys):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    section = readme[readme.index("## Use a trained model") :]
    example = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    (tmp_path / "runs").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "runs" / "f30k_test").symlink_to(run)
    (tmp_path / "data" / "f30k_precomp").symlink_to(data / "demo_precomp")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(example, names)
    assert names["captions"].shape == (2, 16) and names["images"].shape == (10, 16)
    assert capsys.readouterr().out
    assert checkpoint.find("runs/f30k_test")
