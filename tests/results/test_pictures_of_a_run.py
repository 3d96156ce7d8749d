"""A run trained on extracted features encodes new pictures, wherever it is moved."""

import json
import shutil

import numpy as np
import pytest
from helpers import evaluate, read, shared
from pictures import extract, make_network, picture, write_captions, write_pictures
from PIL import Image

import eval as evaluation
import train
from lib import load
from lib.model import checkpoint
from lib.system.errors import InputError

OPTIONS = (
    "--dataset mine --text_encoder bigru --word_dim 8 --min_word_count 1 --num_epochs 1 "
    "--batch_size 6 --embed_size 16 --nhead 2 --workers 0 --device cpu --warmup 1 --save_results 0"
).split()


def fit(folder, run, *more):
    train.main([*OPTIONS, "--data_path", str(folder), "--logger_name", str(run), *more])
    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with photos/, vit/, data/mine_precomp, and a run of embeddings."""
    folder = tmp_path_factory.mktemp("made")
    images = write_pictures(folder / "photos")
    captions, model = write_captions(folder / "captions.csv"), make_network(folder / "vit")
    assert extract(images, captions, folder / "data" / "mine_precomp", model) == 0
    evaluate(fit(folder / "data", folder / "run"), "--query", "a picture")  # caches embeddings
    return shared(folder)


@pytest.fixture(scope="module")
def scan(made, tmp_path_factory):
    """A run of cross-attention."""
    run = tmp_path_factory.mktemp("scan") / "run"
    return fit(made / "data", run, "--method", "scan")


def similarities_of(text):
    """The caption numbers and similarities that a search printed."""
    rows = [line.split("|")[2:4] for line in text.splitlines() if line.startswith("| ")][1:]
    return [(int(number), float(score)) for score, number in rows]


def test_a_picture_has_the_embedding_of_its_features(made):
    model = load(made / "run", device="cpu")
    stored = np.load(made / "data" / "mine_precomp" / "test_ims.npy")
    paths = [made / "photos" / f"{number}.png" for number in range(16, 20)]
    found = model.encode_pictures(paths)
    assert found.shape == (4, 16) and found.dtype == np.float32
    assert np.abs(found - model.encode_images(stored)).max() < 1e-5
    opened = [Image.open(path) for path in paths]
    assert np.abs(found - model.encode_pictures(opened)).max() < 1e-6
    assert not np.allclose(found[0], found[1], atol=1e-4)


def test_a_query_picture_finds_what_its_image_finds(made, capsys):
    evaluate(made / "run", "--query_image", 3, "--topk", 8)
    expected = similarities_of(capsys.readouterr().out)
    evaluate(made / "run", "--query_image", made / "photos" / "19.png", "--topk", 8)
    text = capsys.readouterr().out
    assert f"best of 8 captions (mine, split test) for {made / 'photos' / '19.png'}\n" in text
    found = similarities_of(text)
    assert [number for number, _ in found] == [number for number, _ in expected]
    assert [score for _, score in found] == pytest.approx([s for _, s in expected], abs=2e-4)


def test_numbers_and_ids_keep_their_meaning(made, capsys, tmp_path, monkeypatch):
    """Even where there is a file of this name: ./3 is the file."""
    monkeypatch.chdir(tmp_path)
    picture(50).save(tmp_path / "3", format="png")
    printed = []
    for which in ("3", "id:19", "./3"):
        evaluate(made / "run", "--query_image", which, "--topk", 8)
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != printed[2] and "for ./3\n" in printed[2]


def test_a_moved_run_knows_its_features(made, tmp_path, monkeypatch):
    before = load(made / "run", device="cpu").encode_pictures([picture(70)])
    other = shutil.copytree(made / "run", tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(load(other, device="cpu").encode_pictures([picture(70)]), before)
    record = json.loads((made / "data" / "mine_precomp" / "extraction.json").read_text())
    assert read(other)["extraction"] == record
    assert checkpoint.load(other / "model_best.pth").extraction == record


def test_a_resumed_run_keeps_the_record(made, tmp_path):
    data = shutil.copytree(made / "data", tmp_path / "data")
    run = shutil.copytree(made / "run", tmp_path / "run")
    (data / "mine_precomp" / "extraction.json").unlink()
    fit(data, run, "--resume", "auto", "--num_epochs", "2")
    assert read(run, "last.pth")["epoch"] == 2
    assert read(run, "last.pth")["extraction"] == read(made / "run")["extraction"]


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"format": "hrem-extraction-1"}', '{"format": "other"}']
)
def test_a_damaged_record_is_refused(made, tmp_path, refusal, content):
    data = shutil.copytree(made / "data", tmp_path / "data")
    (data / "mine_precomp" / "extraction.json").write_text(content)
    argv = [*OPTIONS, "--data_path", data, "--logger_name", tmp_path / "run"]
    refusal(train.main, *argv, expected=["extraction.json: not the record of an extraction"])


def test_a_damaged_record_in_a_checkpoint_is_refused(made, tmp_path):
    import torch

    content = read(made / "run")
    content["extraction"] = content["extraction"] | {"regions": "many"}
    torch.save(content, tmp_path / "model_best.pth")
    with pytest.raises(InputError, match="extraction: regions 'many'"):
        load(tmp_path)


def test_a_run_without_a_record_says_what_is_missing(made, tmp_path, refusal):
    data = shutil.copytree(made / "data", tmp_path / "data")
    (data / "mine_precomp" / "extraction.json").unlink()
    run = fit(data, tmp_path / "run")
    with pytest.raises(InputError, match="no record of an extraction"):
        load(run).encode_pictures([picture(0)])
    shown = made / "photos" / "0.png"
    refusal(
        evaluation.main, run, "--query_image", shown, expected=["found no record of an extraction"]
    )


def test_a_network_that_is_gone_is_told(made, tmp_path):
    model = load(made / "run")
    model.extraction = model.extraction | {"model": str(tmp_path / "gone")}
    with pytest.raises(InputError, match="--model .*gone: found neither a folder"):
        model.encode_pictures([picture(0)])


@pytest.mark.parametrize("pictures", ["photo.jpg", [], [3], ["nowhere.jpg"], [__file__]])
def test_what_is_no_list_of_pictures_is_refused(made, pictures):
    with pytest.raises(InputError, match="found|no such file"):
        load(made / "run").encode_pictures(pictures)


@pytest.mark.parametrize("name", ["nowhere.jpg", "", "-1", "1.5"])
def test_a_query_picture_that_does_not_exist_is_refused(made, refusal, name):
    refusal(evaluation.main, made / "run", f"--query_image={name}", expected=["--query_image"])


def test_a_file_that_is_no_picture_is_refused(made, tmp_path, refusal):
    (tmp_path / "text.jpg").write_text("no picture")
    refusal(
        evaluation.main,
        made / "run",
        "--query_image",
        tmp_path / "text.jpg",
        expected=["text.jpg: not a picture that can be opened"],
    )


def test_cross_attention_scores_a_query_picture(made, scan, capsys):
    evaluate(scan, "--query_image", 2, "--topk", 8)
    expected = similarities_of(capsys.readouterr().out)
    evaluate(scan, "--query_image", made / "photos" / "18.png", "--topk", 8)
    found = similarities_of(capsys.readouterr().out)
    assert sorted(found) == [
        (number, pytest.approx(score, abs=2e-4)) for number, score in sorted(expected)
    ]
    with pytest.raises(InputError, match="no embedding"):
        load(scan).encode_pictures([picture(0)])
