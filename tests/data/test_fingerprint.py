"""What a resumed run and kept arrays know of what they depend on:
another thing of the same shape is never believed."""

import json
import shutil

import numpy as np
import pytest
import torch
from damage import OPTIONS, contents, saved_with

import eval as evaluation
import train
from lib.data import fingerprint
from lib.data.dataset import RetrievalDataset
from lib.model import bert
from lib.results.trained import load
from lib.system import cache, run_folder
from lib.system.errors import InputError


def command(data, folder, *more):
    return [*OPTIONS, "--data_path", str(data), "--logger_name", str(folder), *map(str, more)]


@pytest.fixture(scope="module")
def bigru(whole, tmp_path_factory):
    """A run folder of a BiGRU, which tests do not change."""
    folder = tmp_path_factory.mktemp("bigru") / "run"
    train.main(
        command(whole, folder, "--text_encoder", "bigru", "--word_dim", 8, "--min_word_count", 1)
    )
    return folder


def resume(run, data, *more):
    train.main(command(data, run, "--resume", "auto", "--num_epochs", 2, *more))


def words(old, new):
    def change(folder):
        path = folder / "train_caps.txt"
        path.write_text(path.read_text().replace(old, new, 1))

    return change


def array(name, change):
    def apply(folder):
        found = np.load(folder / name)
        np.save(folder / name, change(found))

    return apply


def count_regions(folder):
    np.save(folder / "dev_num_regions.npy", np.full(10, 30))


def swap_words(folder):
    """Two words of the BERT vocabulary that captions hold change places:
    another BERT of the same shape."""
    path = folder / "bert" / "vocab.txt"
    lines = path.read_text().split("\n")
    red, blue = lines.index("red"), lines.index("blue")
    lines[red], lines[blue] = lines[blue], lines[red]
    path.write_text("\n".join(lines))


def configure(**settings):
    def change(folder):
        path = folder / "bert" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return change


def other_weights(folder):
    model = bert.model(folder / "bert")
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.01)
    model.save_pretrained(folder / "bert")


CHANGES = {
    "an edited caption": (words("red", "blue"), ["train_caps.txt: other captions"]),
    "other features": (
        array("train_ims.npy", lambda found: found + 1),
        ["train_ims.npy: other features"],
    ),
    "other order": (
        array("test_ims.npy", lambda found: found[::-1].copy()),
        ["test_ims.npy: other features"],
    ),
    "fewer regions": (
        array("dev_ims.npy", lambda found: found[:, :30].copy()),
        ["dev_ims.npy: other images", "10 images x 30 regions", "expected 10 images x 36 regions"],
    ),
    "counts of regions": (count_regions, ["dev_num_regions.npy: other region counts"]),
    "another vocabulary of BERT": (swap_words, ["--bert_path", "train: other pieces"]),
    "another activation": (
        configure(hidden_act="relu"),
        ["--bert_path", "hidden_act relu", "hidden_act gelu"],
    ),
    "other weights of BERT": (other_weights, ["--bert_path", "bert: other weights"]),
}


@pytest.mark.parametrize("change, expected", CHANGES.values(), ids=CHANGES)
def test_other_data_of_the_same_shape_are_refused(
    finished, data, tmp_path, refusal, change, expected
):
    run = shutil.copytree(finished, tmp_path / "run")
    change(data / "demo_precomp")
    before = (
        (run / "last.pth").read_bytes(),
        (run / "train.txt").read_bytes(),
        (run / "model_best.pth").read_bytes(),
    )
    argv = command(data, run, "--resume", "auto", "--num_epochs", 2)
    refusal(train.main, *argv, expected=[*expected, "--allow_changed_data 1"])
    after = (
        (run / "last.pth").read_bytes(),
        (run / "train.txt").read_bytes(),
        (run / "model_best.pth").read_bytes(),
    )
    assert after == before


def test_changed_data_are_allowed_when_asked_and_then_known(finished, data, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    words("red", "blue")(data / "demo_precomp")
    resume(run, data, "--allow_changed_data", 1)
    assert "train_caps.txt: other captions than when the run began" in capsys.readouterr().out
    resume(run, data)  # these are its data now
    assert "other captions" not in capsys.readouterr().out


@pytest.mark.parametrize("split, is_best", [("dev", True), ("test", False)])
def test_a_best_score_on_other_validation_data_does_not_count(
    finished, data, tmp_path, capsys, split, is_best
):
    """It would keep every later model from being kept."""
    run = shutil.copytree(finished, tmp_path / "run")
    saved_with(run / "last.pth", best_rsum=599.0)
    saved_with(run / "model_best.pth", best_rsum=599.0)
    array(f"{split}_ims.npy", lambda found: found[::-1].copy())(data / "demo_precomp")
    resume(run, data, "--allow_changed_data", 1)
    assert (
        "the best score so far was measured on other dev data" in capsys.readouterr().out
    ) == is_best
    assert torch.load(run / "model_best.pth", weights_only=True)["epoch"] == 1 + is_best


def test_the_same_data_elsewhere_and_repeated_rows_are_the_same(finished, data, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    array("test_ims.npy", lambda found: found.repeat(5, axis=0))(data / "demo_precomp")
    resume(run, data)
    printed = capsys.readouterr().out
    assert "other" not in printed and "not checked" not in printed


def test_a_file_from_before_fingerprints_goes_on_and_says_so(finished, whole, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    position = torch.load(run / "last.pth", weights_only=True)["position"]
    del position["data"]
    saved_with(run / "last.pth", position=position)
    resume(run, whole)
    assert capsys.readouterr().out.count("does not record the data of the run") == 1


def test_what_a_file_does_not_say_is_not_checked_and_told(finished, whole, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    position = torch.load(run / "last.pth", weights_only=True)["position"]
    del position["data"]["train"]["caption_images"], position["data"]["dev"]
    saved_with(run / "last.pth", position=position)
    resume(run, whole)
    assert (
        "so they are not checked: train caption_images, dev images, dev region_counts"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("found", [5, [], {"train": 1}], ids=str)
def test_damaged_fingerprints_are_refused(finished, whole, tmp_path, refusal, found):
    run = shutil.copytree(finished, tmp_path / "run")
    position = torch.load(run / "last.pth", weights_only=True)["position"]
    saved_with(run / "last.pth", position=position | {"data": found})
    refusal(
        train.main, *command(whole, run, "--resume", "auto"), expected=[run / "last.pth", "damaged"]
    )


def test_fingerprints_hold_nothing_but_text(finished):
    found = torch.load(finished / "last.pth", weights_only=True)["position"]["data"]
    assert set(found) == {"train", "dev", "test", "bert"}
    assert all(isinstance(value, str) for part in found.values() for value in part.values())
    assert set(found["train"]) == set(fingerprint.FILES)


@pytest.mark.parametrize("change, expected", [
    (swap_words, "other tokeniser"), (configure(hidden_act="relu"), "other settings"),
    (configure(num_attention_heads=1), "other settings"),
], ids=["vocabulary", "activation", "heads"])  # fmt: skip
def test_a_model_is_not_evaluated_with_another_bert_of_the_same_shape(
    finished, data, refusal, change, expected
):
    change(data / "demo_precomp")
    before = contents(finished)
    path = data / "demo_precomp" / "bert"
    refusal(
        evaluation.main,
        finished,
        "--bert_path",
        path,
        expected=[path, expected, finished / "model_best.pth"],
    )
    assert contents(finished) == before
    with pytest.raises(InputError, match=expected):
        load(finished, bert_path=path)


def test_a_model_is_evaluated_with_its_bert_elsewhere_and_one_of_other_weights(
    finished, data, tmp_path
):
    """The weights come from the checkpoint: the folder brings vocabulary and settings alone."""
    run = shutil.copytree(finished, tmp_path / "run")
    other_weights(data / "demo_precomp")
    evaluation.main([str(run), "--bert_path", str(data / "demo_precomp" / "bert")])
    assert (run / "test.md").read_bytes() == (finished / "test.md").read_bytes()


def test_an_ensemble_of_models_with_different_data_of_their_own_is_refused(
    finished, data, tmp_path, refusal
):
    """Each is evaluated on the data that it was trained with, unless --data_path is given."""
    array("test_ims.npy", lambda found: found[::-1].copy())(data / "demo_precomp")
    train.main(command(data, tmp_path / "other"))
    expected = [data / "demo_precomp" / "test_ims.npy", "other features", "give --data_path"]
    refusal(evaluation.main, finished, tmp_path / "other", expected=expected)
    other = shutil.copytree(finished, tmp_path / "run")
    evaluation.main([str(other), str(tmp_path / "other"), "--data_path", str(data)])


def test_a_checkpoint_that_does_not_tell_its_bert_is_evaluated(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    for reader in ("missing", None, {}):
        content = torch.load(run / "model_best.pth", weights_only=True)
        content.pop("reader", None)
        torch.save(
            content if reader == "missing" else content | {"reader": reader}, run / "model_best.pth"
        )
        evaluation.main([str(run)])


def test_a_resumed_bigru_keeps_the_vocabulary_of_its_checkpoint(bigru, data, tmp_path):
    """A new word that sorts first would move every other one by a place."""
    run = shutil.copytree(bigru, tmp_path / "run")
    known = torch.load(run / "last.pth", weights_only=True)["vocabulary"]
    words("red", "aardvark aardvark")(data / "demo_precomp")
    argv = command(
        data,
        run,
        "--text_encoder",
        "bigru",
        "--word_dim",
        8,
        "--min_word_count",
        1,
        "--resume",
        "auto",
    )
    with pytest.raises(InputError, match="train_caps.txt: other captions"):
        train.main(argv)
    train.main([*argv, "--allow_changed_data", "1", "--num_epochs", "2"])
    for name in (run_folder.LAST, run_folder.BEST):
        assert torch.load(run / name, weights_only=True)["vocabulary"] == known


@pytest.mark.parametrize("found", [["a", "a"], [1], 5], ids=str)
def test_a_damaged_vocabulary_of_a_run_is_refused(bigru, whole, tmp_path, refusal, found):
    run = shutil.copytree(bigru, tmp_path / "run")
    saved_with(run / "last.pth", vocabulary=found)
    argv = command(
        whole,
        run,
        "--text_encoder",
        "bigru",
        "--word_dim",
        8,
        "--min_word_count",
        1,
        "--resume",
        "auto",
    )
    refusal(train.main, *argv, expected=[run / "last.pth", "vocabulary"])


def test_a_fingerprint_reads_some_rows_of_features_alone(whole, monkeypatch):
    data = RetrievalDataset(
        whole / "demo_precomp", "train", bert.tokeniser(whole / "demo_precomp" / "bert")
    )
    read, rows = [], data.unchecked_regions
    monkeypatch.setattr(data, "unchecked_regions", lambda image: read.append(image) or rows(image))
    fingerprint.of_split(data)
    assert read[0] == 0 and read[-1] == 39 and len(read) == fingerprint.SAMPLED_IMAGES


def test_a_digest_tells_values_types_and_their_borders_apart():
    values = [
        ("ab", "c"), ("a", "bc"), ("abc",), (["ab", "c"],), (1,), ("1",), (1.0,),
        (np.array([1, 2]),), (np.array([1, 2], np.int32),), (np.array([[1, 2]]),),
        (np.array([1]), np.array([2])), ("\ud800",), (),
    ]  # fmt: skip
    assert len({cache.digest(*value) for value in values}) == len(values)
    assert cache.digest(np.arange(4)[::2]) == cache.digest(np.array([0, 2]))
