"""Pictures are found by their names, and divided into splits."""

import argparse
from pathlib import Path

import pytest
from pictures import picture

from lib.data import picture_splits
from lib.data.picture_captions import Captioned, CaptionFile
from lib.data.picture_files import PictureFile, PictureIndex, open_picture
from lib.data.picture_splits import Matched, split_shares
from lib.system.errors import InputError


def index_of(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(b"")
    return PictureIndex(folder)


def matched_pictures(count):
    return [Matched(f"{n}.png", Captioned(f"{n}.png", ["a dog"])) for n in range(count)]


def files_of(matched, digest=lambda path: path):
    return {picture.path: PictureFile(digest(picture.path), None) for picture in matched}


@pytest.mark.parametrize(
    "name, expected",
    [
        ("a/1.jpg", "a/1.jpg"),
        ("00042.png", "c/42.JPG"),
        ("42", "c/42.JPG"),
        ("x/dog.jpg", "dog.jpg"),
        ("DOG", "dog.jpg"),
        ("cat.jpg", None),
        ("2.png", "c/2.png"),  # and not c/2.jpg
    ],
)
def test_a_picture_is_found_by_its_path_or_its_name(tmp_path, name, expected):
    names = "a/1.jpg", "b/1.jpg", "c/42.JPG", "dog.jpg", "c/2.png", "c/2.jpg", ".hidden.jpg"
    index = index_of(tmp_path, *names)
    assert index.find(name) == expected and ".hidden.jpg" not in index.paths


def test_a_name_of_several_pictures_is_refused(tmp_path):
    index = index_of(tmp_path, "a/1.jpg", "b/1.jpg")
    with pytest.raises(InputError, match="found a/1.jpg, b/1.jpg, expected one"):
        index.find("1.jpg")


@pytest.mark.parametrize("missing", ["none", "file", "empty"])
def test_a_folder_without_pictures_is_refused(tmp_path, missing):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="--images .*found (no such folder|a file|no picture)"):
        PictureIndex(tmp_path / missing)


def test_what_does_not_match_is_said(tmp_path, capsys):
    index = index_of(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    names = {"1.jpg": ["a dog"], "4.jpg": ["a cat"], "2.jpg": []}
    captions = CaptionFile([Captioned(name, own) for name, own in names.items()], num_blank=1)
    found = picture_splits.match(captions, index, Path("captions.csv"))
    assert [picture.path for picture in found] == ["1.jpg"]
    assert capsys.readouterr().out.splitlines() == [
        "left out: 1 blank captions in captions.csv",
        "left out: 1 names in the captions that are no picture, such as 4.jpg",
        "left out: 1 pictures whose captions are all blank, such as 2.jpg",
        "left out: 1 pictures without a caption, such as 3.jpg",
    ]


@pytest.mark.parametrize(
    "names, message",
    [(["7.jpg"], "its names are no pictures"), (["1.jpg", "01.jpg"], "are the same picture")],
)
def test_captions_that_cannot_be_matched_are_refused(tmp_path, names, message):
    captions = CaptionFile([Captioned(name, ["a dog"]) for name in names])
    with pytest.raises(InputError, match=message):
        picture_splits.match(captions, index_of(tmp_path, "1.jpg"), Path("captions.csv"))


@pytest.mark.parametrize(
    "text", ["80", "80/10", "a/b/c", "0/50/50", "80/-1/10", "1/inf/1", "1/nan/1"]
)
def test_shares_are_three_numbers(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected three numbers such as 80/10/10"):
        split_shares(text)


def test_a_random_division_has_the_shares_and_depends_on_the_seed_only():
    matched = matched_pictures(100)
    first, same, other = (
        picture_splits.divide(own, files_of(matched), split_shares("80/15/5"), seed)
        for own, seed in ((matched, 0), (matched[::-1], 0), (matched, 1))
    )
    assert {split: len(own) for split, own in first.items()} == dict(train=80, dev=15, test=5)
    assert {s: sorted(own) for s, own in first.items()} == {s: sorted(o) for s, o in same.items()}
    assert first != other
    assert first["train"] == [own for own in matched if own in first["train"]]  # in this order
    assert sorted(own for part in first.values() for own in part) == sorted(matched)


def test_copies_stay_together():
    matched = matched_pictures(60)
    files = files_of(matched, digest=lambda path: str(int(Path(path).stem) // 3))
    splits = picture_splits.divide(matched, files, split_shares("2/1/1"), 0)
    assert set(splits) == {"train", "dev", "test"}
    parts = [{files[own.path].digest for own in part} for part in splits.values()]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 20


def test_a_share_of_zero_is_no_split_and_an_empty_split_is_refused():
    matched = matched_pictures(10)
    found = picture_splits.divide(matched, files_of(matched), split_shares("9/1/0"), 0)
    assert list(found) == ["train", "dev"]
    with pytest.raises(InputError, match="no picture for (dev|test)"):
        picture_splits.divide(matched[:3], files_of(matched), split_shares("98/1/1"), 0)


def test_ids_are_the_shortest_different_names():
    paths = "a/1.jpg", "b/1.jpg", "2.jpg", "c/3.jpg", "c/3.png"
    splits = {"train": [Matched(path, Captioned(path, ["a dog"])) for path in paths]}
    named = picture_splits.name_pictures(splits)["train"]
    assert [own.id for own in named] == ["a/1", "b/1", "2", "c/3.jpg", "c/3.png"]


def test_a_picture_is_turned_as_its_exif_data_say(tmp_path):
    shown = picture(0, 40, 20)
    exif = shown.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    shown.save(tmp_path / "turned.png", exif=exif)
    assert open_picture(tmp_path / "turned.png").size == (20, 40)
    shown.convert("P").save(tmp_path / "palette.gif")
    assert open_picture(tmp_path / "palette.gif").mode == "RGB"
