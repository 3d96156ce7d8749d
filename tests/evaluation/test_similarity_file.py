"""Files of similarities, in the two forms that scripts read."""

import pickletools

import numpy as np
import pytest
from damage import OPTIONS
from helpers import evaluate

import eval as evaluation
import train
from lib.evaluation.similarity_file import load_similarities
from lib.system.errors import InputError


def published(run):
    evaluate(run, "--save_results", "published")
    return run / "results_demo.npy"


def test_existing_scripts_read_the_published_form(run, finished):
    expected = np.load(finished / "results_demo.npy")["sims"]
    path = published(run)
    for found in (
        np.load(path, allow_pickle=True).item(),
        np.load(path, allow_pickle=True).tolist(),
    ):
        assert isinstance(found, dict) and found["npts"] == 10
        np.testing.assert_array_equal(found["sims"], expected)
        assert found["sims"].dtype == np.float32 and found["sims"].flags.c_contiguous
    npts, sims = load_similarities(path, allow_pickle=True)
    assert npts == 10 and (sims == expected).all()
    with pytest.raises(InputError, match="allow_pickle=True"):
        load_similarities(path)
    with pytest.raises(ValueError, match="allow_pickle"):
        np.load(path)
    with pytest.raises(IndexError):
        np.load(path, allow_pickle=True)["sims"]  # the array holds the dict


def test_training_saves_the_published_form_too(whole, finished, tmp_path):
    argv = [
        *OPTIONS,
        "--data_path",
        str(whole),
        "--logger_name",
        str(tmp_path / "run"),
        "--save_results",
        "published",
    ]
    train.main(argv)
    found = np.load(tmp_path / "run" / "results_demo.npy", allow_pickle=True).item()
    np.testing.assert_array_equal(found["sims"], np.load(finished / "results_demo.npy")["sims"])


def test_the_published_form_names_no_module_that_older_versions_of_numpy_lack(run):
    with open(published(run), "rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        names = [
            argument for opcode, argument, _ in pickletools.genops(file) if opcode.name == "GLOBAL"
        ]
    assert "numpy.core.multiarray _reconstruct" in names and not [
        name for name in names if "_core" in name
    ]


def test_the_plain_form_is_read_as_the_documentation_says(finished):
    found = np.load(finished / "results_demo.npy")
    assert found["sims"].shape == (10, 50) and found["npts"] == 10
    assert np.load(finished / "results_demo.npy", allow_pickle=True)["sims"].shape == (10, 50)
    with pytest.raises(TypeError):
        found.item()["sims"]  # what --save_results published is for
    assert load_similarities(finished / "results_demo.npy")[1].shape == (10, 50)


@pytest.mark.parametrize("value", ["2", "yes", "plain", "-1"])
def test_no_other_form_is_taken(run, refusal, value):
    refusal(evaluation.main, run, "--save_results", value, expected=["--save_results", "expected"])
