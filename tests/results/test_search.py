"""Search and cached embeddings, against the similarities of the evaluation."""

import os
import re
import shutil

import numpy as np
import pytest
import torch
from helpers import evaluate, read

from lib.data.layout import read_lines
from lib.data.vocabulary import Vocabulary
from lib.evaluation import encoding
from lib.evaluation.similarity import top_indices
from lib.model import bert
from lib.results import search
from lib.results.trained import load
from lib.system import cache, run_folder
from lib.system.errors import InputError

KEPT = "embeddings_model_best_demo_test.npz"


@pytest.fixture(scope="module")
def data(whole):
    return whole


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def rows(printed):
    """Cells of the rows of the last table printed."""
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


@pytest.mark.parametrize("split", ["test", "dev"])
def test_a_query_prints_the_best_images(run, data, split, capsys):
    text = "a red cube left of a dog"
    evaluate("--model_path", run, "--query", text, "--topk", 3, "--split", split)
    found = rows(capsys.readouterr().out)
    model = load(run)
    scores = (
        model.encode_images(np.load(data / "demo_precomp" / f"{split}_ims.npy"))
        @ model.encode_captions([text])[0]
    )
    ids = read_lines(data / "demo_precomp" / f"{split}_ids.txt")
    captions = read_lines(data / "demo_precomp" / f"{split}_caps.txt")
    order = sorted(range(10), key=lambda image: -scores[image])[:3]
    assert [int(row[2]) for row in found] == order
    assert [row[3:] for row in found] == [[ids[image], captions[5 * image]] for image in order]
    assert [float(row[1]) for row in found] == pytest.approx(
        [scores[image] for image in order], abs=1e-4
    )


def test_an_image_is_named_by_its_id_too(run, data, capsys):
    ids = read_lines(data / "demo_precomp" / "test_ids.txt")
    printed = []
    for which in (7, f"id:{ids[7]}"):
        evaluate("--model_path", run, "--query_image", which)
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and f"for id {ids[7]} (image 7)\n" in printed[0]


def test_an_image_has_one_name_where_number_and_id_are_the_same():
    index = search.SplitIndex(["caption"] * 15, ["0", "a", "1"], True, np.arange(15) // 5)
    assert [index.label(image) for image in range(3)] == [
        "image 0",
        "id a (image 1)",
        "id 1 (image 2)",
    ]
    assert [index.find(which) for which in ("1", "id:1", "id:a")] == [1, 2, 1]


@pytest.mark.parametrize("image", [0, 9])
def test_a_query_image_prints_the_best_captions_and_marks_hits(run, data, image, capsys):
    evaluate("--model_path", run, "--query_image", image, "--topk", 50)
    found = rows(capsys.readouterr().out)
    scores = np.load(run / "results_demo.npy")["sims"][image]
    captions = read_lines(data / "demo_precomp" / "test_caps.txt")
    assert [int(row[2]) for row in found] == sorted(range(50), key=lambda caption: -scores[caption])
    for row in found:
        assert row[5] == captions[int(row[2])] and (row[4] == "hit") == (int(row[2]) // 5 == image)


def test_rows_that_repeat_are_told_from_images(run, data, tmp_path, capsys):
    other = shutil.copytree(data, tmp_path / "data") / "demo_precomp"
    np.save(other / "test_ims.npy", np.load(other / "test_ims.npy").repeat(5, axis=0))
    (other / "test_ids.txt").write_text(
        "".join(f"{900 + image}\n" for image in range(10) for _ in range(5))
    )
    evaluate(
        "--model_path", run, "--query", "a dog", "--data_path", tmp_path / "data", "--topk", 10
    )
    for row in rows(capsys.readouterr().out):
        assert int(row[3]) == 5 * int(row[2]) and int(row[4]) == 900 + int(row[2])


def test_ids_are_optional_and_must_fit(run, data, tmp_path, capsys):
    other = shutil.copytree(data, tmp_path / "data") / "demo_precomp"
    (other / "test_ids.txt").unlink()
    evaluate("--model_path", run, "--query", "a dog", "--data_path", tmp_path / "data")
    assert all(row[2] == row[3] for row in rows(capsys.readouterr().out))
    (other / "test_ids.txt").write_text("1\n2\n")
    with pytest.raises(InputError, match="test_ids.txt: .*found 2 ids for 10 images"):
        evaluate("--model_path", run, "--query", "a dog", "--data_path", tmp_path / "data")


def test_words_that_no_model_knows_are_named(run, whole, capsys):
    known = Vocabulary(["red", "dog", "!"])
    assert search.unknown_words("A red Zebra, a DOG and a zebra!", known) == [
        "a",
        "zebra",
        ",",
        "and",
    ]
    assert search.unknown_words("Red dog!", known) == []
    # pieces
    assert search.unknown_words(
        "a red zebra 馬", bert.tokeniser(whole / "demo_precomp" / "bert")
    ) == ["馬"]

    evaluate("--model_path", run, "--query", "a red 馬 and a 犬", "--topk", 3)
    printed = capsys.readouterr().out.splitlines()
    assert printed[1:3] == ["not in the vocabulary: 馬, 犬", ""] and len(printed) == 8
    evaluate("--model_path", run, "--query", "a red dog", "--topk", 3)
    assert "vocabulary" not in capsys.readouterr().out


def test_equal_scores_keep_the_files_order():
    assert top_indices(np.array([0.5, 0.9, 0.5, 0.9]), 3).tolist() == [1, 3, 0]


@pytest.fixture
def encodings(monkeypatch):
    """How often the split has been encoded."""
    calls, encode = [], encoding.similarities
    monkeypatch.setattr(
        encoding, "similarities", lambda *arguments: calls.append(1) or encode(*arguments)
    )
    return calls


def ask(run, capsys, *more):
    capsys.readouterr()
    evaluate("--model_path", run, "--query", "a dog", "--query_image", 3, *more)
    return capsys.readouterr().out


def test_embeddings_are_kept_and_read_again(run, capsys, encodings):
    first = ask(run, capsys)
    assert (run / KEPT).exists() and len(encodings) == 1
    assert ask(run, capsys) == first and len(encodings) == 1
    with np.load(run / KEPT, allow_pickle=False) as file:
        assert file["images"].dtype == file["captions"].dtype == np.float32
    ask(run, capsys, "--split", "dev")
    assert len(encodings) == 2 and ask(run, capsys) == first and len(encodings) == 2


def kept_with(**arrays):
    """Other contents, with the key and the checksum that fit them."""

    def damage(path):
        with np.load(path) as file:
            found = {name: file[name] for name in ("images", "captions")} | arrays
            key = str(found.pop("key", file["key"]))
        with open(path, "wb") as file:
            cache.write(file, key, **found)

    return damage


def exchanged(path):
    """The contents of an image changed, under the old checksum."""
    with np.load(path) as file:
        found = dict(file)
    found["images"][0] = found["images"][1]
    np.savez(path, **found)


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGED = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("Not found"),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "one bit flipped": flipped,
    "a pickle": lambda path: np.savez(path, key=np.array([{}], dtype=object)),
    "an image exchanged": exchanged,
    "another key": kept_with(key="0"),
    "an image too few": kept_with(images=np.zeros((9, 16), np.float32)),
    "another width": kept_with(images=np.zeros((10, 8), np.float32)),
    "another rank": kept_with(images=np.zeros(10, np.float32)),
    "another type": kept_with(captions=np.zeros((50, 16))),
    "NaN": kept_with(captions=np.full((50, 16), np.nan, np.float32)),
    "without captions": lambda path: np.savez(path, key="0", images=np.zeros((10, 16), np.float32)),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_damaged_embeddings_are_computed_again(run, capsys, encodings, damage):
    first = ask(run, capsys)
    damage(run / KEPT)
    assert ask(run, capsys) == first and len(encodings) == 2
    assert ask(run, capsys) == first and len(encodings) == 2  # and replaced


def test_stale_embeddings_are_computed_again(run, data, tmp_path, capsys, encodings):
    folder = shutil.copytree(data, tmp_path / "data") / "demo_precomp"
    where = "--data_path", tmp_path / "data"
    first = ask(run, capsys, *where)

    path = folder / "test_caps.txt"
    path.write_text(path.read_text().replace("red", "blue").replace("dog", "cat"))
    second = ask(run, capsys, *where)
    assert len(encodings) == 2 and second != first

    regions = np.load(folder / "test_ims.npy")
    np.save(folder / "test_ims.npy", regions[::-1])
    third = ask(run, capsys, *where)
    assert len(encodings) == 3 and third != second

    content = read(run)
    content["model"]["image_encoder.projection.bias"] += 1
    torch.save(content, run / "model_best.pth")
    fourth = ask(run, capsys, *where)
    assert fourth != third and len(encodings) == 4

    np.save(folder / "test_num_regions.npy", np.full(10, 5))
    fifth = ask(run, capsys, *where)
    assert fifth != fourth and len(encodings) == 5

    content["options"]["residual_weight"] = 0.3  # no weight, and another embedding
    torch.save(content, run / "model_best.pth")
    assert ask(run, capsys, *where) != fifth and len(encodings) == 6


def test_features_of_the_same_size_and_time_are_told_apart(run, data, tmp_path, capsys, encodings):
    path = shutil.copytree(data, tmp_path / "data") / "demo_precomp" / "test_ims.npy"
    first = ask(run, capsys, "--data_path", tmp_path / "data")
    times = path.stat()
    np.save(path, np.load(path)[::-1])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert ask(run, capsys, "--data_path", tmp_path / "data") != first and len(encodings) == 2


def test_a_checkpoint_replaced_while_a_split_is_encoded_gets_no_embeddings_of_the_one_before(
    run, capsys, monkeypatch, encodings
):
    newer = torch.load(run / "model_best.pth", weights_only=True)
    newer["model"]["image_encoder.projection.weight"] *= -1
    encode = encoding.similarities

    def replace_meanwhile(*arguments):
        torch.save(newer, run / "model_best.pth")
        return encode(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(encoding, "similarities", replace_meanwhile)
        first = ask(run, capsys)
    second = ask(run, capsys)
    assert second != first and len(encodings) == 2  # of which the first was of the older checkpoint


def test_a_model_of_the_same_weights_is_known_under_another_time(run, capsys, encodings):
    first = ask(run, capsys)
    os.utime(run / "model_best.pth")
    assert ask(run, capsys) == first and len(encodings) == 1


def test_embeddings_of_somebody_else_are_left_alone(run, capsys, encodings):
    (run / KEPT).write_bytes(b"mine")
    first = ask(run, capsys)
    assert (
        ask(run, capsys) == first and len(encodings) == 2 and (run / KEPT).read_bytes() == b"mine"
    )


def test_embeddings_from_before_manifests_are_replaced(run, capsys, encodings):
    np.savez(
        run / KEPT,
        key="0",
        images=np.zeros((10, 16), np.float32),
        captions=np.zeros((50, 16), np.float32),
    )
    first = ask(run, capsys)
    assert (
        ask(run, capsys) == first and len(encodings) == 1 and run_folder.RunFolder(run).is_own(KEPT)
    )


HOSTILE = "\x1b[31mred\x07 | a\tb \u202edog\x9b"


def test_hostile_captions_and_ids_are_printed_as_escapes(run, data, tmp_path, capsys):
    folder = shutil.copytree(data, tmp_path / "data") / "demo_precomp"
    (folder / "test_caps.txt").write_text(f"{HOSTILE}\n" * 50, encoding="utf-8")
    (folder / "test_ids.txt").write_text(
        "".join(f"{HOSTILE}{number}\n" for number in range(10)), encoding="utf-8"
    )
    evaluate(
        "--model_path",
        run,
        "--data_path",
        tmp_path / "data",
        "--query",
        "a | dog",
        "--query_image",
        1,
    )
    printed = capsys.readouterr().out
    assert not set(printed) & set("\x1b\x07\x9b\u202e\t")
    tables = [line for line in printed.splitlines() if line.startswith("| ")]
    assert tables and all(
        "\\x1b[31mred\\x07 \\| a\\tb" in line for line in tables if "rank" not in line
    )
    for line in tables:  # a bar of a cell is no border
        assert len(re.findall(r"(?<!\\)\|", line)) in (6, 7)
    assert "for id \\x1b[31mred" in printed and "for: a | dog" in printed


def test_a_run_folder_that_cannot_be_written_is_searched_all_the_same(run, capsys, monkeypatch):
    def refuse(path):
        raise InputError(f"{path}: found permission denied")

    monkeypatch.setattr(run_folder, "atomic_write", refuse)
    assert "best of 10 images" in ask(run, capsys) and not (run / KEPT).exists()


def test_a_search_leaves_tables_alone(run, capsys):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    ask(run, capsys)
    after = {
        path.name: path.read_bytes()
        for path in run.iterdir()
        if path.name not in (KEPT, run_folder.MANIFEST)
    }
    assert after == {
        name: content for name, content in before.items() if name != run_folder.MANIFEST
    }
