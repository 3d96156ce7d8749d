"""Feature values that are not finite or too large, and training that diverges."""

import numpy as np
import pytest
from damage import OPTIONS, TRAIN, contents, regions

import eval as evaluation
import train
from lib.data.dataset import LARGEST_FEATURE

VALUES = {  # put into a test image -> what the refusal says of it
    "1e38": (lambda array: array * 0 + 1e38, "values of 1e+38"),
    "-1e38": (lambda array: array * 0 - 1e38, "values of 1e+38"),
    "one of 2e12": (
        lambda array: np.where(np.arange(array.size).reshape(array.shape) == 77, 2e12, array),
        "2e+12",
    ),
    "all NaN": (lambda array: array * np.nan, "NaN or Inf"),
    "NaN beside 1e38": (lambda array: np.where(array > array.mean(), 1e38, np.nan), "NaN or Inf"),
    "both infinities": (
        lambda array: np.where(array > array.mean(), np.inf, -np.inf),
        "NaN or Inf",
    ),
}


@pytest.mark.parametrize("change, found", VALUES.values(), ids=VALUES)
def test_values_that_are_no_features_are_refused(data, finished, refusal, change, found):
    def changed(array):
        array[7] = change(array[7])
        return array

    regions("test", changed)(data / "demo_precomp")
    before = contents(finished)
    expected = [
        "test_ims.npy: image 7 (row 7, from 0)",
        found,
        "finite features of at most 1e+12",
        "extract",
    ]
    refusal(evaluation.main, "--model_path", finished, "--data_path", data, expected=expected)
    assert contents(finished) == before


def test_a_step_of_training_refuses_them_too(data, tmp_path, refusal):
    regions("train", lambda array: array * np.float32(1e30))(data / "demo_precomp")
    expected = [f"{TRAIN}: image ", "values of ", "at most 1e+12", "extract"]
    refusal(
        train.main,
        *OPTIONS,
        "--data_path",
        data,
        "--logger_name",
        tmp_path / "run",
        expected=expected,
    )
    assert not (tmp_path / "run" / "model_best.pth").exists()


def test_the_largest_values_that_are_let_in_train(data, tmp_path):
    for split in ("train", "dev", "test"):
        regions(split, lambda array: array / np.abs(array).max() * np.float32(LARGEST_FEATURE))(
            data / "demo_precomp"
        )
    train.main([*OPTIONS, "--data_path", str(data), "--logger_name", str(tmp_path / "run")])
    assert "skipped" not in (tmp_path / "run" / "train.txt").read_text()
    assert (tmp_path / "run" / "test.md").exists()


def test_a_training_that_diverges_ends_in_one_line(whole, tmp_path, refusal):
    argv = [
        *OPTIONS,
        "--learning_rate",
        "1e30",
        "--data_path",
        whole,
        "--logger_name",
        tmp_path / "run",
    ]
    expected = [
        "demo_precomp",
        "NaN or Inf in the embeddings of the dev split",
        "expected finite embeddings",
        "smaller --learning_rate",
    ]
    refusal(train.main, *argv, expected=expected)
