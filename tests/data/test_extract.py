"""`python -m lib.data extract`, from a folder of pictures to a data folder."""

import json
import os
import shutil

import numpy as np
import pytest
from kills import Programs
from pictures import extract, make_network, picture, run, write_captions, write_pictures
from PIL import Image

from lib.data import conversion, work_folder
from lib.data import extract as extract_module
from lib.data.extractor import load_extractor
from lib.data.layout import read_lines
from lib.data.picture_files import open_picture


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_network(tmp_path_factory.mktemp("vit"))


@pytest.fixture
def images(tmp_path):
    return write_pictures(tmp_path / "photos")


@pytest.fixture
def captions(tmp_path):
    return write_captions(tmp_path / "captions.csv")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "data" / "mine_precomp"


def content(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


def test_a_folder_of_pictures_becomes_a_data_folder(images, captions, out, model, capsys):
    assert extract(images, captions, out, model, "--regions", 9) == 0
    assert "train: 12 images, 24 captions\n" in capsys.readouterr().out
    assert run("check", out) == 0
    assert capsys.readouterr().out.endswith("OK\n")
    ends = "ims.npy", "caps.txt", "ids.txt", "boxes.npy", "picture_sizes.npy"
    names = {f"{split}_{end}" for split in ("train", "dev", "test") for end in ends}
    assert set(content(out)) == names | {"extraction.json"}  # and no map, no counts
    extractor = load_extractor(json.loads((out / "extraction.json").read_text()))
    first = 0
    for split, size in (("train", 12), ("dev", 4), ("test", 4)):
        numbers = range(first, first + size)
        assert read_lines(out / f"{split}_ids.txt") == list(map(str, numbers))
        expected = extractor.features([open_picture(images / f"{n}.png") for n in numbers])
        found = np.load(out / f"{split}_ims.npy")
        assert found.shape == (size, 9, 16) and np.abs(found - expected).max() < 1e-5
        boxes = np.load(out / f"{split}_boxes.npy")
        assert boxes.shape == (size, 9, 4) and (boxes == boxes[0]).all()
        np.testing.assert_allclose(boxes[0, [0, 5]], np.divide([[0, 0, 1, 1], [2, 1, 3, 2]], 3))
        with Image.open(images / f"{first}.png") as picture:
            assert np.load(out / f"{split}_picture_sizes.npy")[0].tolist() == list(picture.size)
        first += size
    assert read_lines(out / "dev_caps.txt")[0].startswith("picture 12 with")


def test_a_network_that_crops_gives_no_boxes(images, captions, out, tmp_path, capsys):
    make_network(tmp_path / "crops", "dinov2")
    assert extract(images, captions, out, tmp_path / "crops", "--regions", 4) == 0
    assert not list(out.glob("*_boxes.npy")) and run("check", out) == 0


def test_a_random_split_and_captions_of_different_number(images, captions, out, model, capsys):
    write_captions(captions, split=False)
    captions.write_text(captions.read_text() + "3.png,one more\n")
    assert extract(images, captions, out, model, "--split", "80/10/10", "--seed", 4) == 0
    assert run("check", out) == 0
    assert [len(np.load(out / f"{s}_ims.npy")) for s in ("train", "dev", "test")] == [16, 2, 2]
    owner = next(s for s in ("train", "dev", "test") if "3" in read_lines(out / f"{s}_ids.txt"))
    owners = read_lines(out / f"{owner}_caps_images.txt")
    row = read_lines(out / f"{owner}_ids.txt").index("3")
    assert owners.count(str(row)) == 3 and len(list(out.glob("*_caps_images.txt"))) == 1


def test_coco_has_a_picture_in_test_and_testall(images, out, model, tmp_path):
    entries = [
        dict(split=split, filename=f"{n}.jpg", cocoid=100 + n, sentences=[dict(raw=f"a {n}")])
        for n, split in enumerate(["train", "restval", "val", "test"])
    ]
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(dict(images=entries)))
    assert extract(images, path, out, model) == 0 and run("check", out) == 0
    assert read_lines(out / "testall_ids.txt") == read_lines(out / "test_ids.txt") == ["103"]
    assert np.array_equal(np.load(out / "test_ims.npy"), np.load(out / "testall_ims.npy"))


def test_unreadable_pictures_stop_the_command_unless_they_may_be_left_out(
    images, captions, out, model, capsys
):
    (images / "2.png").write_bytes((images / "2.png").read_bytes()[:60])
    (images / "5.png").write_bytes(b"")
    assert extract(images, captions, out, model) == 2
    error = capsys.readouterr().err
    assert f"{images / '2.png'}: cannot be opened" in error and error.count("\n") == 1
    assert "2 of 20 pictures cannot be opened: 2.png, 5.png" in error and not out.exists()
    assert extract(images, captions, out, model, "--skip_unreadable") == 0
    assert "left out: 2.png cannot be opened" in capsys.readouterr().out
    assert run("check", out) == 0 and len(read_lines(out / "train_ids.txt")) == 10


def test_copies_are_named(images, captions, out, model, capsys):
    shutil.copy(images / "1.png", images / "3.png")
    shutil.copy(images / "4.png", images / "13.png")
    assert extract(images, captions, out, model) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "the same picture 2 times: 1.png, 3.png" in lines
    assert "warning: the same picture 2 times: 13.png, 4.png, in dev and train" in lines
    assert run("check", out) == 1  # as it says of any folder whose splits share an image


@pytest.mark.parametrize(
    "more, message",
    [
        (["--split", "80/10/10"], "already says the split of each picture"),
        (["--split", "80"], "found '80', expected three numbers"),
        (["--model", "nobody/nothing"], "--model nobody/nothing: found neither a folder"),
        (["--regions", "0"], "found '0', expected a whole number of at least 1"),
        (["--device", "tpu"], "--device tpu: not usable here"),
        (["--images", "nowhere"], "--images nowhere: found no such folder"),
        (["--captions", "nowhere"], "--captions nowhere: no such file"),
    ],
)
def test_bad_options_are_one_line_and_nothing_is_written(
    images, captions, out, model, capsys, more, message
):
    assert extract(images, captions, out, model, *more) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not out.exists()


def test_captions_without_splits_need_shares(images, captions, out, model, capsys):
    write_captions(captions, split=False)
    assert extract(images, captions, out, model) == 2
    assert "--split 80/10/10 --seed 0" in capsys.readouterr().err


def test_files_are_replaced_only_when_that_is_asked_for(images, captions, out, model, capsys):
    assert extract(images, captions, out, model) == 0
    before = content(out)
    assert extract(images, captions, out, model, "--regions", 4) == 2
    assert "--overwrite to replace them" in capsys.readouterr().err and content(out) == before
    assert extract(images, captions, out, model, "--regions", 4, "--overwrite") == 0
    assert np.load(out / "train_ims.npy").shape == (12, 4, 16)
    assert json.loads((out / "extraction.json").read_text())["grid"] == [2, 2]


def test_what_is_on_disk_is_not_extracted_again(images, captions, out, model, capsys, monkeypatch):
    """Only a batch is in memory, and a stopped extraction goes on where it was."""
    blocks, store = [], work_folder.store

    def stop(work, block, with_boxes):
        if len(blocks) == 2:
            raise KeyboardInterrupt
        blocks.append(len(block))
        store(work, block, with_boxes)

    monkeypatch.setattr(work_folder, "store", stop)
    assert extract(images, captions, out, model, "--batch_size", 3) == 130
    assert "run the same command again to resume" in capsys.readouterr().err
    assert blocks == [3, 3] and run("check", out) == 2
    blocks.clear()
    monkeypatch.setattr(
        work_folder,
        "store",
        lambda *own, with_boxes: (blocks.append(len(own[1])), store(*own, with_boxes)),
    )
    assert extract(images, captions, out, model, "--batch_size", 3) == 0
    assert sum(blocks) == 20 - 6 and max(blocks) == 3 and run("check", out) == 0
    other = out.with_name("other_precomp")
    assert extract(images, captions, other, model, "--batch_size", 3) == 0
    assert content(other) == content(out)


def test_an_extraction_with_another_picture_starts_over(
    images, captions, out, model, monkeypatch, capsys
):
    fill = extract_module._fill
    monkeypatch.setattr(extract_module, "_fill", lambda *own: exit(1))
    assert extract(images, captions, out, model) == 1
    monkeypatch.setattr(extract_module, "_fill", fill)
    picture(99).save(images / "0.png")
    assert extract(images, captions, out, model) == 0
    assert "is restarted: it has other inputs or options" in capsys.readouterr().out


def test_a_picture_that_changes_meanwhile_ends_the_extraction(
    images, captions, out, model, monkeypatch, capsys
):
    begin = conversion.begin
    change = lambda *own: (begin(*own), picture(99).save(images / "7.png"))
    monkeypatch.setattr(conversion, "begin", change)
    assert extract(images, captions, out, model) == 2
    assert "7.png: changed while the features were extracted" in capsys.readouterr().err
    assert not list(out.glob("*.npy"))


def test_an_extraction_killed_before_any_operation_is_repeated_by_the_same_command(
    tmp_path, model, out
):
    images = write_pictures(tmp_path / "photos", 3)
    captions = tmp_path / "captions.csv"
    captions.write_text("image,caption,split\n0.png,a,train\n1.png,b,train\n2.png,c,test\n")
    whole = tmp_path / "whole_precomp"
    assert extract(images, captions, whole, model, "--batch_size", 2) == 0
    operations = set()
    arguments = [
        "extract", "--images", images, "--captions", captions, "--out", out, "--model", model,
        "--batch_size", 2, "--device", "cpu",
    ]  # fmt: skip
    # each killed process would have to load torch: these features are the mean colours
    setup = (
        "import json, types, numpy as np\n"
        "from lib.data import extract, __main__ as data_command\n"
        f"record = json.loads({(whole / 'extraction.json').read_text()!r})\n"
        "means = lambda own: [np.full((16, 16), np.mean(one), np.float32) for one in own]\n"
        "cells = np.zeros((16, 4), np.float32)\n"
        "made = types.SimpleNamespace(record=record, batch_size=2, features=means, cells=cells)\n"
        "extract._build_extractor = lambda options: made"
    )
    command = f"data_command.main({list(map(str, arguments))!r})"
    with Programs(setup) as programs:
        assert programs.run(command).status == 0
        expected = content(out)
        for killed in programs.killed_at_each(
            command, out, lambda: shutil.rmtree(out, ignore_errors=True)
        ):
            operations.add(killed.operation)
            found = content(out) if out.exists() else {}
            assert os.path.lexists(out / ".converted") or found in ({}, expected), killed
            again = programs.run(command)
            assert again.status == 0 and content(out) == expected, (killed, again)
    assert "os.remove .converted" in operations and "os.rmdir .conversion" in operations
