"""Files of captions: all formats say the same, and errors name the line."""

import json

import pytest

from lib.data.picture_captions import read_captions
from lib.system.errors import InputError

CAPTIONS = {"1.jpg": ["a dog, running", "two  dogs"], "b/2.jpg": ["a cat"]}
EXPECTED = [("1.jpg", ["a dog, running", "two dogs"]), ("b/2.jpg", ["a cat"])]

CSV = 'image,caption\n1.jpg,"a dog, running"\nb/2.jpg,a cat\n1.jpg,two  dogs\n'
FORMATS = {
    "CSV": CSV,
    "CSV with a mark and other line ends": "\ufeff" + CSV.replace("\n", "\r\n"),
    "columns in another order": 'Comment,n,FileName\n"a dog, running",0,1.jpg\ntwo  dogs,1,1.jpg\n'
    "a cat,0,b/2.jpg\n",
    "TSV": "image\tcaption\n1.jpg\ta dog, running\n1.jpg\ttwo  dogs\n\nb/2.jpg\ta cat\n",
    "pipes": "image_name| comment_number| comment\n1.jpg| 0| a dog, running\n1.jpg| 1| two  dogs\n"
    "b/2.jpg| 0| a cat\n",
    "numbered": "1.jpg#0\ta dog, running\n1.jpg#1\ttwo  dogs\nb/2.jpg#0\ta cat\n",
    "JSON lines": "".join(
        json.dumps(dict(image=name, caption=caption)) + "\n"
        for name, own in CAPTIONS.items()
        for caption in own
    ),
    "JSON lines with lists": "\n".join(
        json.dumps(dict(file_name=name, captions=own)) for name, own in CAPTIONS.items()
    ),
}


def write(tmp_path, text):
    path = tmp_path / "captions.txt"
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("text", FORMATS.values(), ids=FORMATS)
def test_every_format_gives_the_same_captions(tmp_path, text):
    found = read_captions(write(tmp_path, text))
    assert [(picture.name, picture.captions) for picture in found.pictures] == EXPECTED
    assert not found.has_splits and found.num_blank == 0


def test_a_quote_in_a_tsv_is_a_letter(tmp_path):
    text = 'image\tcaption\n1.jpg\t"a dog\n2.jpg\tsays "hello"\n'
    found = read_captions(write(tmp_path, text)).pictures
    assert [picture.captions for picture in found] == [['"a dog'], ['says "hello"']]


@pytest.mark.parametrize("name, split", [("val", "dev"), ("restval", "train"), ("TEST", "test")])
def test_splits_have_the_names_of_a_data_folder(tmp_path, name, split):
    for text in (
        f"image,split,caption\n1.jpg,{name},a dog\n",
        json.dumps(dict(image="1.jpg", split=name, caption="a dog")),
    ):
        found = read_captions(write(tmp_path, text))
        assert found.has_splits and found.pictures[0].split == split


@pytest.mark.parametrize("indent", [None, 2])
def test_a_karpathy_json(tmp_path, indent):
    images = [
        dict(split="train", filename="1.jpg", sentences=[dict(raw="a dog")]),
        dict(split="val", filename="2.jpg", cocoid=42, sentences=[dict(raw="a  cat")] * 2),
    ]
    found = read_captions(write(tmp_path, json.dumps(dict(images=images), indent=indent))).pictures
    assert [tuple(picture) for picture in found] == [
        ("1", ["a dog"], "train", None),
        ("2", ["a cat", "a cat"], "dev", "42"),
    ]


def test_blank_captions_are_counted(tmp_path):
    found = read_captions(write(tmp_path, "1.jpg#0\ta dog\n1.jpg#1\t\n1.jpg#2\t  \n"))
    assert found.num_blank == 2 and found.pictures[0].captions == ["a dog"]


REFUSED = {
    "": "found no caption|the head row has",
    "a,b\n1.jpg,dog\n": "the head row has a, b, expected exactly one of image",
    "image,file,caption\n1.jpg,1.jpg,dog\n": "expected exactly one of image",
    "image,caption\n1.jpg,a dog, running\n": "line 2 has 3 columns, expected 2",
    'image,caption\n1.jpg,"a dog\n': "line 2 is not a row of a table",
    "image,caption\n,a dog\n": "line 2 names no picture",
    "image,caption,split\n1.jpg,a dog,training\n": "line 2 has the split 'training', expected one",
    "image,caption,split\n1.jpg,a,train\n1.jpg,b,test\n": "line 3 puts 1.jpg into test, expected",
    "1.jpg#0\ta dog\n2.jpg a cat\n": "line 2 is '2.jpg a cat', expected name.jpg#0",
    '{"image": "1.jpg", "caption": "a"}\nno\n': "line 2 is not a JSON object",
    '{"image": "1.jpg", "caption": "a"}\n[1]\n': "line 2 is not a JSON object",
    '{"image": 1, "caption": "a"}\n': "line 1: found 1, expected text",
    '{"image": "1.jpg", "captions": ["a", null]}\n': "line 1: found None, expected text",
    '{"image": "1.jpg"}\n': "line 1 has the fields image, expected exactly one of caption",
    '{"images": [{"split": "train", "cocoid": 1, "sentences": [{"raw": "a"}]}]}': "has no filename",
    '{"images": []}': 'found no list "images"',
    "image,caption\n1.jpg,\n": None,  # blank: left out, and said
}


@pytest.mark.parametrize("text, message", REFUSED.items())
def test_other_files_are_refused_with_their_line(tmp_path, text, message):
    path = write(tmp_path, text)
    if message is None:
        assert read_captions(path).num_blank == 1
        return
    with pytest.raises(InputError, match=message) as refused:
        read_captions(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_latin_1_is_refused(tmp_path):
    (tmp_path / "captions.txt").write_bytes("image,caption\n1.jpg,café\n".encode("latin-1"))
    with pytest.raises(InputError, match="line 2 is not UTF-8"):
        read_captions(tmp_path / "captions.txt")
