"""TSV files of different extractors: columns, names, numbers of sentences, changing files."""

import numpy as np
import pytest
from tsv_inputs import (
    DIM,
    NAMES,
    PICTURES,
    PLACES,
    check_values,
    convert_there,
    write_json,
    write_tsv,
)

from lib.data import conversion, tsv, tsv_columns


@pytest.fixture
def folder(tmp_path):
    write_json(tmp_path)
    return tmp_path


LAYOUTS = {
    "usual": {},
    "usual with a head": dict(head=True),
    "a head in quotes": dict(head=True, change_head=lambda name: f'"{name}"'),
    "another order": dict(
        columns=["image_id", "image_w", "image_h", "num_boxes", "features", "boxes"], head=True
    ),
    "more columns": dict(
        columns=["note", "features", "num_boxes", "img_id", "boxes", "objects_id"], head=True
    ),
    "no boxes": dict(columns=["img_id", "num_boxes", "features"], head=True),
    "ten columns": dict(columns=tsv_columns.PYTORCH_COLUMNS),
    "bytes literals": dict(change=lambda cell: repr(cell.encode())),
    "other boxes": dict(box_dtype=np.float64),
    "windows names": dict(name=lambda picture: f"C:\\pictures\\{picture}.JPG"),
    "names with a tail": dict(name=lambda picture: f"{picture}.JPEG.NPY"),
    "names of arrays": dict(name=lambda picture: f"features/{picture:06d}.jpg.npz"),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts_of_the_same_values_are_read_alike(folder, layout, capsys):
    write_tsv(folder, **layout)
    assert convert_there(folder) == 0
    check_values(folder, rtol=0)
    assert (text := capsys.readouterr().out).count(
        "matched by filename: 30 images, such as line '"
    ) == 1
    assert (
        "each field finds: filename: 30, imgid: 0)" in text and f"{DIM} features (float32)" in text
    )


def prepend(folder, line):
    (folder / "a.tsv").write_text(line + (folder / "a.tsv").read_text())


REFUSED = {
    "columns that a head lacks": (
        lambda folder: write_tsv(folder, columns=["img_id", "boxes", "image_w"], head=True),
        ["a.tsv: line 1: the header lacks num_boxes, features (found img_id, boxes, image_w)"],
    ),
    "a head of other names": (
        lambda folder: [write_tsv(folder), prepend(folder, "id\tw\th\tnum\tbboxes\tfeats\n")],
        [
            (
                "a.tsv: line 1: the header lacks image_id or img_id, num_boxes, features (found "
                "id, w, h, num, bboxes, feats)"
            )
        ],
    ),
    "columns that a head names twice": (
        lambda folder: write_tsv(
            folder, columns=["img_id", "num_boxes", "features", "image_id"], head=True
        ),
        ["a.tsv: line 1: the header names image_id or img_id twice"],
    ),
    "seven columns": (
        lambda folder: write_tsv(folder, columns=[*tsv_columns.COLUMNS, "note"]),
        [
            "line 1 has 7 columns and no header, expected 6 separated by tabs (image_id, ",
            "10 (img_id, ",
        ],
    ),
    "boxes and features exchanged": (
        lambda folder: write_tsv(
            folder, columns=["image_id", "image_w", "image_h", "num_boxes", "features", "boxes"]
        ),
        [
            "line 1 (image 100): found 1536 bytes of boxes, expected 4 float16, 32 or 64 for each",
            "names them",
        ],
    ),
    "another order of ten": (
        lambda folder: write_tsv(folder, columns=tsv_columns.PYTORCH_COLUMNS[::-1]),
        ["a.tsv: line 1: found 2048 characters as image_id", "write a first line that names them"],
    ),
    "running numbers": (
        lambda folder: write_tsv(
            folder, pictures=PICTURES, name=lambda picture: str(PICTURES.index(picture))
        ),
        [
            (
                "30 of 30 images are in no TSV file, such as 100, "
                "101, 102, 103, 104, ... (by filename)"
            ),
            (
                "the TSV files hold 32 others, such as 0, 1, 2, 3, 4, "
                "...; matched by filename: 0, imgid: 30"
            ),
            "give --match imgid only if the TSV files number the images as this JSON does",
        ],
    ),
    "two names of one image": (
        lambda folder: write_tsv(
            folder, pictures=[*NAMES, 98], name=lambda n: "A/105.JPG" if n == 98 else str(n)
        ),
        [
            "a.tsv: line 31: the names 'A/105.JPG' and '105' (",
            "a.tsv: line 6) both stand for image 105",
        ],
    ),
    "fields that contradict": (
        lambda folder: [
            write_tsv(folder),
            write_json(folder, cocoid=lambda picture: 229 - picture),
        ],
        [
            "cocoid and filename both match all images, but differently: image 100 is ",
            "a.tsv: line 30 by cocoid and ",
            "give --match cocoid or --match filename",
        ],
    ),
    "names that lie in no line": (
        lambda folder: write_tsv(folder, name=lambda picture: ""),
        ["a.tsv: line 1: found nothing as image_id"],
    ),
    "letters of control": (
        lambda folder: write_tsv(folder, name=lambda picture: f"\x1b[2J{picture}x"),
        [" such as \\x1b[2J100x, "],
    ),
}


@pytest.mark.parametrize("write, expected", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_told_is_refused_before_anything_is_written(folder, write, expected, capsys):
    write(folder)
    assert convert_there(folder) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.removesuffix("\n").isprintable()
    for part in expected:
        assert part in error, error
    assert not (folder / "mine_precomp").exists()


def lines(folder, name):
    return (folder / "mine_precomp" / name).read_text().splitlines()


def test_every_sentence_is_kept_with_its_image(folder, capsys):
    write_tsv(folder)
    write_json(folder, counts=lambda number: 1 + number % 6)
    assert convert_there(folder) == 0
    assert "train: 20 images, 66 captions, 1 to 6 per image\n" in capsys.readouterr().out
    for split, pictures in PLACES.items():
        rows = [int(row) for row in lines(folder, f"{split}_caps_images.txt")]
        counts = [1 + NAMES.index(picture) % 6 for picture in pictures]
        assert rows == np.repeat(range(len(pictures)), counts).tolist()
        of = np.repeat(pictures, counts).tolist()
        numbers = [number for count in counts for number in range(count)]
        expected = [
            f"caption {number} of picture {picture}" for number, picture in zip(numbers, of)
        ]
        assert lines(folder, f"{split}_caps.txt") == expected


@pytest.mark.parametrize("counts, options, kept, dropped", [
    (lambda n: 5 + n % 3, [], 5, 19), (lambda n: 7, ["--captions_per_image", 0], 7, 0),
    (lambda n: 5, ["--captions_per_image", 1], 1, 80), (lambda n: 3, [], 3, 0),
])  # fmt: skip
def test_the_first_sentences_are_kept_and_the_others_counted(
    folder, counts, options, kept, dropped, capsys
):
    write_tsv(folder)
    write_json(folder, counts=counts)
    assert convert_there(folder, *options) == 0
    more = f"; {dropped} more were dropped, --captions_per_image 0 keeps all" if dropped else ""
    assert f"train: 20 images, {20 * kept} captions{more}\n" in capsys.readouterr().out
    expected = [
        f"caption {c} of picture {picture}" for picture in PLACES["test"] for c in range(kept)
    ]
    assert lines(folder, "test_caps.txt") == expected
    assert not list((folder / "mine_precomp").glob("*_caps_images.txt"))


def test_a_map_is_written_where_some_images_have_fewer_than_the_first_sentences(folder):
    write_tsv(folder)
    write_json(folder, counts=lambda number: 1 + number % 6)
    assert convert_there(folder, "--captions_per_image", 2) == 0
    assert lines(folder, "dev_caps_images.txt") == "0 0 1 1 2 2 3 3 4".split()
    assert lines(folder, "train_caps_images.txt")[:9] == "0 1 1 2 2 3 3 4 4".split()


@pytest.mark.parametrize(
    "damage, expected",
    [
        (lambda path: path.unlink(), "cannot be read (no such file)"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:4000]),
            "a.tsv: line 2: changed while it was read",
        ),
        (
            lambda path: write_tsv(path.parent, pictures=NAMES[::-1]),
            "line 1: changed while it was read, expected image",
        ),
        (
            lambda path: path.write_bytes(path.read_bytes() + b"\n"),
            "a.tsv: changed while it was read",
        ),
    ],
)
def test_a_file_that_changes_while_it_is_read_ends_the_conversion(
    folder, monkeypatch, damage, expected, capsys
):
    write_tsv(folder)
    begin = conversion.begin
    change = lambda *found: (begin(*found), damage(folder / "a.tsv"))
    monkeypatch.setattr(conversion, "begin", change)
    assert convert_there(folder) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
    assert not list((folder / "mine_precomp").glob("*.npy"))


def test_a_file_that_grows_during_the_first_reading_ends_the_conversion(
    folder, monkeypatch, capsys
):
    write_tsv(folder)
    read_index = tsv.read_index

    def grow(paths):
        found = read_index(paths)
        with open(folder / "split.json", "a") as file:
            file.write(" ")
        return found

    monkeypatch.setattr(tsv, "read_index", grow)
    assert convert_there(folder) == 2
    assert (
        "split.json: changed while it was read" in capsys.readouterr().err
        and not (folder / "mine_precomp").exists()
    )


def test_a_line_without_an_end_is_refused(folder, monkeypatch, capsys):
    write_tsv(folder)
    monkeypatch.setattr(tsv, "LONGEST_LINE", 1000)
    assert convert_there(folder) == 2
    assert "a.tsv: line 1 has more than 1000 bytes" in capsys.readouterr().err
