"""The report on a data folder: its description, and one fix for each kind of damage."""

import os
import re
import shutil
import warnings

import numpy as np
import pytest
from helpers import make_data
from test_dataset import resident, sparse

from lib.data import __main__ as data_command
from lib.data import check, feature_checks
from lib.system.errors import InputError, command_line

SIZES = {"train": 30, "dev": 8, "test": 8}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A valid demo data folder, which tests do not change."""
    return make_data(tmp_path_factory, **SIZES) / "demo_precomp"


@pytest.fixture
def folder(whole, tmp_path):
    """A copy to damage, without the boxes (tests/data/test_boxes.py)."""
    without_boxes = shutil.ignore_patterns("*_boxes.npy")
    return shutil.copytree(whole, tmp_path / "demo_precomp", ignore=without_boxes)


def images(folder, split="test"):
    return np.load(folder / f"{split}_ims.npy")


def regions(split, change):
    """Damage: replace the array of a split by change(array)."""
    return lambda folder: np.save(folder / f"{split}_ims.npy", change(images(folder, split)))


def lines(name, change):
    """Damage: replace the lines of a file by change(lines)."""

    def damage(folder):
        found = (folder / name).read_bytes().split(b"\n")[:-1]
        (folder / name).write_bytes(b"".join(line + b"\n" for line in change(found)))

    return damage


def put(split, where, value):
    def change(array):
        array[where] = value
        return array

    return regions(split, change)


def counts(split, values):
    return lambda folder: np.save(folder / f"{split}_num_regions.npy", values)


def run(*argv):
    """Exit status of the command, as of `python -m lib.data`."""
    try:
        command_line(lambda: data_command.main([str(argument) for argument in argv]))
    except SystemExit as ended:
        return ended.code
    return 0


def test_a_good_folder_is_told_of_and_ok(whole, capsys):
    assert run("check", whole) == 0
    text = capsys.readouterr().out
    train, *below = text.split("\n")[:7]
    assert train == "train: 30 rows x 36 regions x 128 features (float32, 0.6 MB), 150 captions"
    array = images(whole, "train")
    captions = (whole / "train_caps.txt").read_text().splitlines()
    words = [len(caption.split()) for caption in captions]
    assert below == [
        "  images    30, one row each; no duplicates",
        f"  values    0 to {array.max():.4g}, none negative, finite; all rows read",
        "  regions   36 per image (no train_num_regions.npy: no padding)",
        "  boxes     one per region (train_boxes.npy); they are only drawn",
        "  pairs     5 captions per image (in order, no train_caps_images.txt)",
        (
            f"  captions  {min(words)} to {max(words)} words, mean {np.mean(words):.1f}; "
            f"{len(set(captions))} different texts; none blank"
        ),
    ]
    assert text.count("  ids       8, all different\n") == 2
    assert "\ntrain and dev have in common: 0 images, 0 ids, " in text and text.endswith("\nOK\n")


def test_check_may_be_left_out(whole, folder, capsys):
    np.save(folder / "dev_num_regions.npy", np.zeros(8, np.int32))
    for place, status in ((whole, 0), (folder, 1)):
        printed = []
        for argv in (["check", place], [place]):
            assert run(*argv) == status
            printed.append(capsys.readouterr())
        assert printed[0] == printed[1] and not printed[0].err


def test_repeated_rows_are_compared(folder):
    regions("test", lambda array: array.repeat(5, axis=0))(folder)
    report = check.check(folder)
    assert not report.fixes
    assert "test: 40 rows x 36" in str(
        report
    ) and "  images    8, each 5 times; no duplicates" in str(report)
    put("test", (slice(17, 18), 3, 4), 7.5)(folder)
    (fix,) = check.check(folder).fixes
    assert "5 times, but rows differ for 1 images (rows 15, from 0)" in fix


def test_splits_are_found_by_their_files_the_usual_first(folder):
    for end in ("ims.npy", "caps.txt"):
        (folder / f"train_{end}").rename(folder / f"a_split_{end}")
    (folder / "train_ids.txt").unlink()
    report = check.check(folder)
    assert re.findall(r"^(\w+):", str(report), re.MULTILINE) == ["dev", "test", "a_split"]


def test_float16_and_other_layouts_are_read(folder):
    regions("train", lambda array: np.asfortranarray(array.astype(">f4")))(folder)
    regions("dev", lambda array: array.astype(np.float16))(folder)
    report = check.check(folder)
    assert not report.fixes and "dev: 8 rows x 36 regions x 128 features (float16" in str(report)


DAMAGES = {  # damage to a valid folder -> parts of the only fix
    "without captions": (
        lambda folder: (folder / "dev_caps.txt").unlink(),
        ["dev_caps.txt: no such file"],
    ),
    "without regions": (
        lambda folder: (folder / "dev_ims.npy").unlink(),
        ["dev_ims.npy: no such file"],
    ),
    "a damaged array": (
        lambda folder: os.truncate(folder / "dev_ims.npy", 500),
        ["dev_ims.npy: cannot be read"],
    ),
    "float64": (
        regions("test", lambda array: array.astype("f8")),
        ["test_ims.npy", "float64", "astype"],
    ),
    "an image too few": (
        regions("dev", lambda array: array[:7]),
        ["dev_caps.txt", "40 captions", "35"],
    ),
    "not UTF-8": (
        lines("dev_caps.txt", lambda found: [b"caf\xe9", *found[1:]]),
        ["dev_caps.txt: line 1 is not UTF-8"],
    ),
    "blank captions": (
        lines("test_caps.txt", lambda found: [b" ", b"", b"\t", *found[3:]]),
        ["test_caps.txt: found 3 blank captions (lines 1, 2, 3, from 1)"],
    ),
    "NaN": (
        put("train", (29, 35, 127), np.nan),
        ["train_ims.npy: found NaN or Inf in 1 rows (rows 29, from 0)"],
    ),
    "infinities": (
        put("train", ([0, 3], 1, 2), [np.inf, -np.inf]),
        ["train_ims.npy: found NaN or Inf in 2 rows (rows 0, 3, from 0)"],
    ),
    "huge values": (
        put("dev", (2, 0, 0), -2e4),
        ["dev_ims.npy: found values beyond 10000 in 1 rows (rows 2, from 0)"],
    ),
    "an image of zeros": (
        put("dev", 4, 0),
        ["dev_ims.npy: found only zeros in 1 rows (rows 4, from 0)"],
    ),
    "padding without counts": (
        put("test", (slice(2, 4), slice(30, 36)), 0),
        [
            "test_ims.npy: the last regions are all zeros in 2 rows (rows 2, 3, from 0)",
            "test_num_regions.npy (int32",
        ],
    ),
    "counts that are too small": (
        counts("test", np.array([36] * 7 + [35])),
        ["test_ims.npy: found nonzero regions beyond the counts", "1 rows (rows 7, from 0)"],
    ),
    "counts that are too large": (
        lambda folder: (
            put("test", (5, slice(30, 36)), 0)(folder),
            counts("test", np.full(8, 36))(folder),
        ),
        ["test_ims.npy: the last regions are all zeros in 1 rows (rows 5, from 0)"],
    ),
    "counts of zero": (
        counts("dev", np.arange(8)),
        ["dev_num_regions.npy: found 0 regions for row 0", "1 to 36"],
    ),
    "counts beyond": (
        counts("dev", np.full(8, 37)),
        ["dev_num_regions.npy: found 37 regions for row 0", "1 to 36"],
    ),
    "counts of other rows": (
        counts("dev", np.full(9, 36)),
        ["dev_num_regions.npy: found int64 of shape (9,)", "8 rows"],
    ),
    "counts with fractions": (
        counts("dev", np.full(8, 36.0)),
        ["dev_num_regions.npy: found float64 of shape (8,)"],
    ),
    "counts that are text": (
        lambda folder: (folder / "dev_num_regions.npy").write_text("36\n" * 8),
        ["dev_num_regions.npy: cannot be read as a .npy array"],
    ),
    "another feature size": (
        regions("test", lambda array: array[..., :64]),
        [
            (
                "demo_precomp: splits have features of different sizes (found 128 in "
                "train_ims.npy, 128 in dev_ims.npy, 64 in test_ims.npy"
            )
        ],
    ),
    "an image of another split": (
        lambda folder: put("test", 3, images(folder, "train")[17])(folder),
        ["train_ims.npy: 1 images (images 17, from 0) are also in test_ims.npy"],
    ),
    "ids of another split": (
        lines("dev_ids.txt", lambda found: [b"0", *found[1:]]),
        ["train_ids.txt: 1 ids (ids 0) are also in dev_ids.txt"],
    ),
    "an id too few": (
        lines("dev_ids.txt", lambda found: found[:-1]),
        ["dev_ids.txt: found 7 ids for 8 images"],
    ),
    "repeated ids": (
        lines("dev_ids.txt", lambda found: [*found[:7], found[2]]),
        ["dev_ids.txt: 1 ids (ids 32) stand for several images"],
    ),
}


@pytest.mark.parametrize("damage, expected", DAMAGES.values(), ids=DAMAGES)
def test_every_damage_is_to_be_fixed_and_the_only_one(folder, damage, expected, capsys):
    damage(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run("check", folder) == 1
    text = capsys.readouterr().out
    assert "\nto fix: 1\n1. " in text and "\nOK" not in text
    fix = text.split("\n1. ")[1]
    for part in expected:
        assert part in fix, fix


def test_mends_are_numbered(folder, capsys):
    put("dev", (1, 2, 3), np.nan)(folder)
    lines("test_caps.txt", lambda found: [b"", *found[1:]])(folder)
    assert run(folder) == 1
    assert re.findall(
        r"^(?:to fix: )?\d+", capsys.readouterr().out.split("\n\n")[1], re.MULTILINE
    ) == [
        "to fix: 2",
        "1",
        "2",
    ]


def test_negative_values_and_copies_are_told_of_and_no_fault(folder):
    put("dev", ([1, 5], 0, 0), -3.0)(folder)
    put("test", 6, images(folder)[2])(folder)
    report = check.check(folder)
    assert not report.fixes
    assert "  values    -3 to" in str(
        report
    ) and "negative in 2 rows (bottom-up-attention has none)" in str(report)
    assert "  images    8, one row each; 1 duplicate" in str(report)


def test_an_id_for_each_caption_is_an_id_for_each_image(folder):
    lines("dev_ids.txt", lambda found: [line for line in found for _ in range(5)])(folder)
    assert not check.check(folder).fixes


def test_test_is_a_part_of_testall(folder):
    for end in ("ims.npy", "caps.txt", "ids.txt"):
        shutil.copy(folder / f"test_{end}", folder / f"testall_{end}")
    report = check.check(folder)
    assert not report.fixes and "test and testall have in common: 8 images, 8 ids," in str(report)


def test_an_unfinished_conversion_is_to_be_fixed(folder):
    (folder / ".conversion").mkdir()
    [fix] = check.check(folder).fixes
    assert fix.startswith(
        f"{folder / '.conversion'} contains an unfinished conversion; run the same command"
    )


def test_a_sample_reads_that_many_images(folder, monkeypatch, capsys):
    regions("test", lambda array: array.repeat(5, axis=0))(folder)
    put("train", (1, 2, 3), np.nan)(folder)
    found, read_rows = [], feature_checks.read_rows
    monkeypatch.setattr(
        feature_checks,
        "read_rows",
        lambda path, which: found.append(which.tolist()) or read_rows(path, which),
    )
    assert run("check", folder, "--sample", 3) == 0
    assert found == [[0, 14, 29], [0, 3, 7], [*range(5), *range(15, 20), *range(35, 40)]]
    text = capsys.readouterr().out
    assert "finite; 3 of 30 rows read" in text and "in common: not compared images, 0 ids" in text
    assert run("check", folder, "--sample", 300) == 1


def test_blocks_change_nothing(folder, monkeypatch):
    put("train", (17, 2, 3), np.nan)(folder)
    whole = str(check.check(folder))
    for rows in (0.1, 7):
        monkeypatch.setattr(feature_checks, "BLOCK_BYTES", rows * 36 * 128 * 4)
        assert str(check.check(folder)) == whole


def test_a_large_file_is_read_in_blocks(tmp_path):
    sparse(tmp_path / "dev_ims.npy", (500, 36, 2048))
    (tmp_path / "dev_caps.txt").write_bytes(b"a red ball\n" * 2500)
    check.check(tmp_path, sample=1)
    before, highest, read = resident(), [], np.stack

    def spy(*arguments, **settings):
        highest.append(resident())
        return read(*arguments, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "stack", spy)
        patch.setattr(feature_checks, "BLOCK_BYTES", 8e6)
        report = check.check(tmp_path)
    assert len(report.fixes) == 1 and "only zeros in 500 rows" in report.fixes[0]
    assert len(highest) == 19
    assert before is None or max(highest) - before < 60e6  # of 147 MB


@pytest.mark.parametrize(
    "argv, expected",
    [
        (["check", "nowhere_precomp"], ["nowhere_precomp: no such folder", "data/f30k_precomp"]),
        (["nowhere_precomp"], ["nowhere_precomp: no such folder"]),
        (["check", "."], ["found no split, expected files such as train_ims.npy"]),
        ([], ["python -m lib.data", "check | convert", "--help"]),
        (["check"], ["python -m lib.data check", "folder"]),
        (["check", ".", "--sample", "0"], ["--sample", "found '0'", "at least 1"]),
        (["check", ".", "."], ["unrecognized arguments: ."]),
        (
            ["check", ".", "--smaple", "3"],
            ["check: --smaple: unknown option. Did you mean --sample?"],
        ),
        (["convert", "--jsn", "x"], ["convert: --jsn: unknown option. Did you mean --json?"]),
        (
            ["convert", "--tsv", "x", "--json", "x"],
            ["convert: the following arguments are required: --out."],
        ),
    ],
)
def test_usage_ends_with_status_2_and_one_line(tmp_path, monkeypatch, capsys, argv, expected):
    monkeypatch.chdir(tmp_path)
    assert run(*argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    for part in expected:
        assert part in error


def test_help_names_both_commands(capsys):
    assert run("--help") == 0
    assert {"check", "convert"} <= set(capsys.readouterr().out.split())


def test_a_folder_without_splits_is_refused(tmp_path):
    with pytest.raises(InputError, match="found no split, expected files such as train_ims.npy"):
        check.check(tmp_path)
