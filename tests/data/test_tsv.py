"""What public extractors write: other columns, other element types, other names,
other numbers of sentences."""

import base64
import json

import numpy as np
import pytest
from test_check import run

from lib.data import convert, element_type, tsv, tsv_columns

DIM, NUM_BOXES = 64, 6
NAMES = list(range(100, 130))  # of pictures
PICTURES = [98, 99, *NAMES]  # a folder of pictures, two of which are in no split
SPLITS = ["train"] * 20 + ["val"] * 5 + ["test"] * 5
PLACES = {"train": NAMES[:20], "dev": NAMES[20:25], "test": NAMES[25:]}


def features(picture):
    """(n, D) float32, with zeros and without negative values, as of a detector."""
    values = np.random.default_rng(picture).normal(0.3, 0.6, (NUM_BOXES, DIM))
    return np.maximum(values, 0).astype(np.float32)


def encoded(array, dtype=np.float32):
    return base64.b64encode(np.asarray(array, dtype).tobytes()).decode()


def cells(picture, name=str, dtype=np.float32, box_dtype=np.float32):
    boxes = np.random.default_rng(picture).uniform(1, 400, (NUM_BOXES, 4))
    return dict(
        image_id=name(picture), img_id=name(picture), image_w="640", image_h="480", img_w="640",
        img_h="480", num_boxes=str(NUM_BOXES), boxes=encoded(boxes, box_dtype),
        features=encoded(features(picture), dtype),
        objects_id=encoded(np.zeros(NUM_BOXES), np.int64), objects_conf=encoded(np.ones(NUM_BOXES)),
        attrs_id=encoded(np.zeros(NUM_BOXES), np.int64), attrs_conf=encoded(np.ones(NUM_BOXES)),
        note="",
    )  # fmt: skip


def write_tsv(
    folder, columns=tsv_columns.COLUMNS, head=False, pictures=NAMES, change=lambda cell: cell,
    change_head=lambda name: name, **settings,
):  # fmt: skip
    lines = ["\t".join(map(change_head, columns))] if head else []
    for picture in pictures:
        found = cells(picture, **settings)
        lines.append("\t".join(change(found[column]) for column in columns))
    (folder / "a.tsv").write_text("\n".join(lines) + "\n")


def write_json(folder, counts=lambda number: 5, **more):
    images = [
        dict(filename=f"{picture}.jpg", imgid=number, split=split)
        | dict(
            sentences=[dict(raw=f"caption {c} of picture {picture}") for c in range(counts(number))]
        )
        | {field: value(picture) for field, value in more.items()}
        for number, (picture, split) in enumerate(zip(NAMES, SPLITS))
    ]
    (folder / "split.json").write_text(json.dumps(dict(images=images)))


def convert_there(folder, *more):
    command = [
        "convert",
        "--tsv",
        folder / "a.tsv",
        "--json",
        folder / "split.json",
        "--out",
        folder / "mine_precomp",
    ]
    return run(*command, "--regions", NUM_BOXES, *more)


def check_values(folder, of=lambda picture: picture, **tolerance):
    for split, pictures in PLACES.items():
        found = np.load(folder / "mine_precomp" / f"{split}_ims.npy")
        np.testing.assert_allclose(
            found, [features(of(picture)) for picture in pictures], **tolerance
        )


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


@pytest.mark.parametrize("boxes", ["float16", "float32", "float64"])
@pytest.mark.parametrize("dtype, error", [("float16", 2e-3), ("float64", 0)])
def test_the_element_type_shows_in_the_bytes(folder, dtype, error, boxes, capsys):
    write_tsv(folder, dtype=dtype, box_dtype=boxes)
    assert convert_there(folder) == 0
    check_values(folder, atol=error, rtol=0)
    assert f"x {DIM} features ({dtype})" in capsys.readouterr().out


KINDS = {
    "of a detector": lambda generator: np.maximum(generator.normal(0.3, 0.6, (600, 16)), 0),
    "mostly zeros": lambda generator: np.maximum(generator.normal(-1.5, 0.8, (4000, 16)), 0),
    "of both signs": lambda generator: generator.standard_normal((600, 16)),
    "of length one": lambda generator: generator.standard_normal((600, 16)) / 40,
    "large": lambda generator: generator.uniform(2, 60, (600, 16)),
    "rounded to float16": lambda generator: generator.standard_normal((600, 16)).astype(np.float16),
    "rounded to bfloat16": lambda generator: np.exp2(generator.integers(-6, 3, (600, 16))) * 1.5,
    "zeros and ones": lambda generator: generator.integers(0, 2, (600, 16)),
}


@pytest.mark.parametrize("dtype", element_type.DTYPES)
@pytest.mark.parametrize("values", KINDS.values(), ids=KINDS)
def test_the_type_of_all_kinds_of_values_is_found(values, dtype):
    array = values(np.random.default_rng(1)).astype(dtype)
    content = np.frombuffer(array.tobytes(), np.uint8)
    assert element_type.find_dtype(content, array[0].nbytes) == dtype


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64])
def test_whole_numbers_are_none_of_the_types(dtype):
    array = np.random.default_rng(1).integers(0, 120, (600, 16)).astype(dtype)
    assert (
        element_type.find_dtype(np.frombuffer(array.tobytes(), np.uint8), array[0].nbytes) is None
    )


def test_too_few_bytes_show_no_type(folder, capsys):
    assert element_type.find_dtype(np.zeros(0, np.uint8), 64) is None
    assert element_type.find_dtype(np.zeros(64000, np.uint8), 64) is None
    (folder / "split.json").write_text(
        json.dumps(
            {"images": [dict(filename="100.jpg", split="test", sentences=[dict(raw="one")] * 5)]}
        )
    )
    write_tsv(
        folder,
        pictures=[100],
        change=lambda cell: cell if len(cell) < 1000 else encoded(np.ones((6, 8))),
    )
    assert convert_there(folder) == 2
    error = capsys.readouterr().err
    assert (
        "32 bytes of features per box, and their type cannot be inferred" in error
        and "give the right --dtype" in error
    )
    assert not (folder / "mine_precomp").exists()
    assert convert_there(folder, "--dtype", "float32") == 0
    assert np.array_equal(np.load(folder / "mine_precomp" / "test_ims.npy"), np.ones((1, 6, 8)))


def test_a_type_that_is_said_is_taken_and_doubted_aloud(folder, capsys):
    write_tsv(folder, dtype=np.float16)
    assert convert_there(folder, "--dtype", "float32") == 0
    assert (
        "taken as float32, as --dtype says, although their bytes look like float16"
        in capsys.readouterr().out
    )
    write_tsv(folder, change=lambda cell: cell if len(cell) < 1000 else encoded(np.ones((6, 3))))
    assert convert_there(folder, "--dtype", "float64", "--overwrite") == 2
    assert (
        "found 12 bytes of features per box, and --dtype float64 does not fit"
        in capsys.readouterr().err
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


def test_names_of_all_letters_are_matched_and_written(folder):
    tail = " caf\u00e9\u202f\U0001f600"
    write_json(folder, filename=lambda picture: f"{picture}{tail}.jpg")
    write_tsv(
        folder,
        name=lambda picture: repr(
            f"{picture}{tail.replace(chr(0xE9), 'e' + chr(0x301))}.jpg".encode()
        ),
    )
    assert convert_there(folder) == 0
    check_values(folder, rtol=0)
    written = (folder / "mine_precomp" / "test_ids.txt").read_text(encoding="utf-8")
    assert written == "".join(f"{picture}{tail}\n" for picture in PLACES["test"])


def test_a_running_number_is_used_when_it_is_asked_for(folder, capsys):
    write_tsv(folder, pictures=PICTURES, name=lambda picture: str(PICTURES.index(picture)))
    assert convert_there(folder, "--match", "imgid") == 0
    check_values(folder, of=lambda picture: PICTURES[NAMES.index(picture)])
    assert "matched by imgid: 30 images" in capsys.readouterr().out
    assert convert_there(folder, "--match", "cocoid", "--overwrite") == 2
    assert "(by cocoid)" in (error := capsys.readouterr().err) and "the JSON has no cocoid" in error


def test_contradicting_fields_are_decided_by_the_user(folder):
    write_tsv(folder)
    write_json(folder, cocoid=lambda picture: 229 - picture)
    assert convert_there(folder, "--match", "cocoid") == 0
    found = np.load(folder / "mine_precomp" / "train_ims.npy")
    np.testing.assert_array_equal(found, [features(229 - picture) for picture in NAMES[:20]])


def test_file_names_that_look_like_running_numbers_are_warned_about(folder, capsys):
    numbers = {picture: number for number, picture in enumerate(NAMES)}
    write_json(folder, filename=lambda picture: f"{numbers[picture]}.jpg")
    for name, pictures, warned in (
        (lambda picture: str(numbers[picture]), NAMES, 1),
        (lambda picture: str(numbers[picture]), NAMES[::-1], 1),
        (lambda picture: f"{numbers[picture]}.jpg", NAMES, 0),
    ):
        write_tsv(folder, name=name, pictures=pictures)
        assert convert_there(folder, "--overwrite") == 0
        found = capsys.readouterr().out.count(
            "warning: the names in the TSV files are the numbers from 0 on"
        )
        assert found == warned


def lines(folder, name):
    return (folder / "mine_precomp" / name).read_text().splitlines()


def test_every_sentence_is_kept_with_its_image(folder, capsys):
    write_tsv(folder)
    write_json(folder, counts=lambda number: 1 + number % 6)
    assert convert_there(folder) == 0
    assert "train: 20 images, 66 captions, 1 to 6 an image\n" in capsys.readouterr().out
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
    begin = convert._begin
    monkeypatch.setattr(convert, "_begin", lambda *found: (begin(*found), damage(folder / "a.tsv")))
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
