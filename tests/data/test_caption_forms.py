"""Detection of caption files whose lines hold more than captions, and their commands."""

import csv
import io
import json
import shlex
import subprocess
import sys

import pytest

from lib.data import caption_forms, demo
from lib.data.layout import read_lines

CAPTIONS = [
    "a red ball, and a dog", "two dogs run", 'a "big" cube', "3 cats on 2 mats", "it's a cup",
    "a man's hat; 1990", "a woman holds a sign that says 50% off", "näh, schön",
    "A cup, a cat and a hat.", "12 people",
] * 5  # fmt: skip


def as_csv(fields):
    target = io.StringIO()
    csv.writer(target, quoting=csv.QUOTE_ALL).writerow(fields)
    return target.getvalue().strip()


FORMS = {
    "token": lambda n, text: f"{n // 5 + 1000}.jpg#{n % 5}\t{text}",
    "token with spaces": lambda n, text: f"{n // 5 + 1000}.jpg#{n % 5} {text}",
    "id and tab": lambda n, text: f"{n}\t{text}",
    "three columns": lambda n, text: f"{n // 5}\t{n % 5}\t{text}",
    "an address at the end": lambda n, text: f"{text}\thttps://example.org/{n}.jpg",
    "csv": lambda n, text: f"{1000 + n}.jpg,{text}",
    "csv of numbers": lambda n, text: f"{n},{'a' + text}",
    "quoted csv": lambda n, text: f"{1000 + n}.jpg,{as_csv([text])}",
    "csv, all quoted": lambda n, text: as_csv([f"{1000 + n}.jpg", text]),
    "bars": lambda n, text: f"{n // 5 + 1000}.jpg| {n % 5}| {text}",
    "a bar": lambda n, text: f"{n // 5 + 1000}.jpg | {text}",
    "a file name": lambda n, text: f"COCO_val2014_{n:012d}.jpg {text}",
    "a long number": lambda n, text: f"{391895 + n} {'a' + text}",
    "objects": lambda n, text: json.dumps(dict(image_id=n, caption=text)),
    "raw objects": lambda n, text: json.dumps(
        dict(raw=text, tokens=text.split()), ensure_ascii=False
    ),
    "strings": lambda n, text: json.dumps(text),
    "bytes of Python": lambda n, text: repr(text.encode()),
    "strings of Python": lambda n, text: repr(text),
    "words of Python": lambda n, text: repr(text.split()),
    "a name and a comma": lambda n, text: f"COCO_val2014_{n:012d},{'a' + text}",
    "a semicolon": lambda n, text: f"{n}.jpg;{text}",
    "numbered": lambda n, text: f"{n}. {'a' + text}",
    "a name and a colon": lambda n, text: f"{n // 5}.jpg: {'a' + text}",
    "a growing number": lambda n, text: f"{n} {'a' + text}",
    "markers": lambda n, text: f"<start> {text} <end>",
    "markers of BERT": lambda n, text: f"[CLS] {text} [SEP]",
}


def written(folder, form):
    path = folder / "a folder" / "test_caps.txt"
    path.parent.mkdir()
    path.write_text(
        "".join(f"{form(n, text)}\n" for n, text in enumerate(CAPTIONS)), encoding="utf-8"
    )
    return path


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_command_leaves_the_captions(tmp_path, form):
    path = written(tmp_path, form)
    text = caption_forms.warning(path, read_lines(path))
    assert (
        text.startswith(f"{path}: its lines hold more than captions: found ") and "\n" not in text
    )
    command = text.split("; to keep only the text: ")[1]
    command = command.replace("python -c", f"{shlex.quote(sys.executable)} -c")
    subprocess.run(["sh", "-c", command], check=True, timeout=60)
    expected = [form(n, text) for n, text in enumerate(CAPTIONS)]
    found = read_lines(path)
    if form(0, "x").endswith("ax"):
        assert found == ["a" + text for text in CAPTIONS]
    else:
        assert found == CAPTIONS
    assert found != expected and caption_forms.warning(path, found) is None


def test_numbers_and_unknown_objects_have_no_command(tmp_path):
    for line, told in (
        ("23 101, 7592", "numbers and nothing else"),
        ("[1]", "JSON"),
        ('{"x": 1}', "JSON"),
    ):
        text = caption_forms.warning(tmp_path / "test_caps.txt", [line] * 50)
        assert told in text and text.endswith("; write the captions as text, one per line")


def test_captions_have_no_form(tmp_path):
    demo.build(tmp_path / "demo_precomp", sizes={"train": 200, "dev": 5, "test": 5})
    for texts in (
        CAPTIONS,
        read_lines(tmp_path / "demo_precomp" / "train_caps.txt"),
        [],
        [""] * 5,
        ["a"],
    ):
        assert caption_forms.find_form(texts) is None
    few = [*CAPTIONS[:40], *("1.jpg#0\tx" for _ in range(10))]
    assert caption_forms.find_form(few) is None


@pytest.mark.parametrize("text", [
    "2 dogs, 3 cats", "Two, three", "[unclear] a dog", "{a} dog", '"Stop" says a sign',
    "100 people", "a|b", "#1 fan", "<b> is bold", "'tis a dog", "['a', 'dog']", "1. a dog", "b'a",
])  # fmt: skip
def test_a_caption_of_an_odd_form_is_a_caption(text):
    assert caption_forms.find_form([text, *CAPTIONS]) is None
