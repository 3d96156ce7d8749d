"""Forms in which people have their images and captions,
each through the programs: what must come of it."""

import re
from html import escape
from pathlib import Path

import numpy as np
import pytest

import eval as evaluation
import train
from lib.data import __main__ as data_command
from lib.data import demo
from lib.data.layout import read_lines
from lib.evaluation import encoding
from lib.system.errors import command_line

SIZES = {"train": 30, "dev": 20, "test": 20}
OPTIONS = (
    "--num_epochs 1 --batch_size 10 --embed_size 16 --nhead 2 --workers 0 --warmup 0 --log_step 1"
)
PICTURE = b"\xff\xd8\xff\xe0 a picture"


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "demo_precomp"
    demo.build(folder, sizes=SIZES)
    return folder


def shuffled(num_images):
    """The image of each of 3 N captions in random order, 1 to 6 captions per image."""
    draw = np.random.default_rng(num_images)
    counts = 1 + draw.multinomial(2 * num_images, [1 / num_images] * num_images).clip(max=5)
    return draw.permutation(np.repeat(np.arange(num_images), counts))


def make(name, array, texts):
    """Array, captions, and lines of further files of a case;
    from the usual array and five captions per image."""
    n = len(array)
    return {
        "five": lambda: (array, texts, {}),
        "repeated": lambda: (array.repeat(5, axis=0), texts, {}),
        "tiled": lambda: (np.tile(array, (5, 1, 1)), texts, {}),
        "one": lambda: (array, texts[::5], {}),
        "three repeated": lambda: (
            array.repeat(3, axis=0),
            [t for i, t in enumerate(texts) if i % 5 < 3],
            {},
        ),
        "seven": lambda: (array[: 5 * n // 7], texts[: 5 * n // 7 * 7], {}),
        "uneven": lambda: (
            array,
            [texts[5 * i] for i in shuffled(n)],
            dict(caps_images=shuffled(n)),
        ),
        "token": lambda: (
            array,
            [f"{i // 5 + 1000}.jpg#{i % 5}\t{text}" for i, text in enumerate(texts)],
            {},
        ),
        "ids_jpg": lambda: (array, texts, dict(ids=[f"scene_{i // 5}.jpg" for i in range(5 * n)])),
        "trailing": lambda: (array, [*texts, ""], {}),
    }[name]()


@pytest.fixture(scope="module")
def case(demo_folder, tmp_path_factory):
    """Options for a case's data, which are written on the first use."""
    data = tmp_path_factory.mktemp("data")

    def build(name):
        folder = data / f"{name.replace(' ', '_')}_precomp"
        for split in SIZES if not folder.exists() else ():
            folder.mkdir(exist_ok=True)
            texts = (demo_folder / f"{split}_caps.txt").read_text().splitlines()
            array, captions, files = make(name, np.load(demo_folder / f"{split}_ims.npy"), texts)
            np.save(folder / f"{split}_ims.npy", array)
            for ending, lines in dict(caps=captions, **files).items():
                if ending == "ids":
                    lines = [f"{split}_{line}" for line in lines]
                (folder / f"{split}_{ending}.txt").write_text(
                    "".join(f"{line}\n" for line in lines)
                )
        names = ["--data_path", str(data), "--dataset", name.replace(" ", "_")]
        return folder, [*names, "--bert_path", str(demo_folder / "bert")]

    return build


@pytest.fixture(scope="module")
def fit(case, tmp_path_factory):
    """Train on a case, once. Returns the run folder and the scores of the test split."""
    done = {}

    def run(name, *more):
        key = (name, *more)
        if key not in done:
            folder = tmp_path_factory.mktemp("run") / "run"
            (found,) = train.main(
                [*case(name)[1], *OPTIONS.split(), "--logger_name", str(folder), *more]
            )
            done[key] = folder, found.scores
        return done[key]

    return run


def check(folder):
    """Exit status of `python -m lib.data check`."""
    try:
        command_line(lambda: data_command.main(["check", str(folder)]))
    except SystemExit as ended:
        return ended.code
    return 0


def logs(folder):
    return [
        (folder / name).read_text().replace(str(folder), "") for name in ("train.txt", "eval.txt")
    ]


def test_repeated_rows_are_the_same_data_bit_for_bit(fit, case, capsys, monkeypatch):
    (five, scores), (repeated, scores_again) = fit("five"), fit("repeated")
    assert scores == scores_again
    ours, theirs = (
        [
            line
            for log in logs(run)
            for line in log.splitlines()
            if "_precomp" not in line and "dataset" not in line
        ]
        for run in (five, repeated)
    )
    assert [line.replace("five", "repeated") for line in ours] == theirs and len(ours) > 10
    similarities, seen = encoding.similarities, []
    monkeypatch.setattr(
        encoding, "similarities", lambda *given: seen.append(similarities(*given)) or seen[-1]
    )
    capsys.readouterr()
    for name in ("five", "repeated"):
        evaluation.main([str(five), *case(name)[1]])
    printed = capsys.readouterr().out
    rows = re.findall(r"^\| 20 \|.*$", printed, re.MULTILINE)
    assert len(rows) == 2 and rows[0] == rows[1] and printed.count("20 images, 100 captions") == 2
    np.testing.assert_array_equal(seen[0][:, :], seen[1][:, :])


def test_a_file_repeated_as_a_whole_is_refused(case, refusal, tmp_path, capfd):
    folder, options = case("tiled")
    expected = ["train_ims.npy: ", "rows 0 and 30 (from 0) are the same", "store every image once"]
    refusal(
        train.main, *options, *OPTIONS.split(), "--logger_name", tmp_path / "run", expected=expected
    )
    assert not (tmp_path / "run").exists()
    assert check(folder) == 1
    assert "rows 0 and 20 (from 0) are the same" in capfd.readouterr().out


# images, captions, and the pairing that `check` reports, of the test split
CASES = {
    "one": (20, 20, "1 caption per image (one row per caption"),
    "three repeated": (20, 60, "3 captions per image (rows repeated 3 times"),
    "seven": (14, 98, "7 captions per image (in order"),
    "uneven": (20, len(shuffled(20)), "1 to 6 captions per image (test_caps_images.txt"),
}


@pytest.mark.parametrize("name, found", CASES.items(), ids=CASES)
def test_any_number_of_captions_is_checked_trained_on_and_evaluated(name, found, case, fit, capsys):
    num_images, num_captions, pairs = found
    folder, options = case(name)
    assert check(folder) == 0
    printed = capsys.readouterr().out
    assert pairs in printed and f"  images    {num_images}, " in printed
    run, scores = fit(
        name, "--val_step", "2", "--batch_sampling", "neighbour", "--batch_clusters", "2"
    )
    log = logs(run)[0]
    assert (
        f"test: test split of {folder}, {num_images} images x 36 regions x 128, "
        f"{num_captions} captions"
    ) in log
    assert list(scores) == [str(num_images)] and 0 < scores[str(num_images)].rsum < 600
    capsys.readouterr()
    evaluation.main([str(run), "--bootstrap", "20"])
    printed = capsys.readouterr().out
    assert f"split test: {num_images} images, {num_captions} captions; 1 model" in printed
    row, interval = re.findall(rf"^\| {num_images} \|(.*)\|$", printed, re.MULTILINE)
    numbers = row.split("|")
    assert [one.split()[0] for one in interval.split("|")] == [
        one.strip() for one in (*numbers[:3], *numbers[5:8], numbers[10])
    ]


def check_gallery(page, captions, images):
    """The captions of an image, and no others, are its hits."""
    queries = re.findall(
        r'<p class="soft">image (\d+); its best caption has rank \d+</p>(.*?)</ol>', page, re.DOTALL
    )
    assert len(queries) == 12
    for image, results in queries:
        shown = re.findall(r'<li class="(\w+)">.*?<span class="words">(.*?)</span>', results)
        assert len(shown) >= 5
        for kind, text in shown:
            owners = {image for image, caption in zip(images, captions) if escape(caption) == text}
            assert (int(image) in owners) == (kind != "miss")


@pytest.mark.parametrize("name", CASES)
def test_any_number_of_captions_is_searched_exported_and_reported(
    name, case, fit, capsys, tmp_path
):
    num_images, num_captions, _ = CASES[name]
    run, _ = fit(name, "--val_step", "2", "--batch_sampling", "neighbour", "--batch_clusters", "2")
    folder, _ = case(name)
    captions = read_lines(folder / "test_caps.txt")
    evaluation.main([str(run), "--export", str(tmp_path / "out"), "--report"])
    images = [int(line) for line in read_lines(tmp_path / "out" / "caption_images.txt")]
    expected = {
        "one": list(range(20)),
        "three repeated": [n // 3 for n in range(60)],
        "seven": [n // 7 for n in range(98)],
        "uneven": shuffled(20).tolist(),
    }[name]
    assert images == expected and read_lines(tmp_path / "out" / "captions.txt") == captions
    rows, columns = (
        np.load(tmp_path / "out" / f"{one}_embeddings.npy") for one in ("image", "caption")
    )
    assert (len(rows), len(columns)) == (num_images, num_captions)
    (page,) = run.glob("report*.html")
    check_gallery(page.read_text(), captions, images)
    capsys.readouterr()
    image = num_images - 2
    evaluation.main([str(run), "--query_image", str(image), "--topk", str(num_captions)])
    found = [
        line.split(" | ")
        for line in capsys.readouterr().out.splitlines()
        if re.match(r"\| \d+ \|", line)
    ]
    assert len(found) == num_captions
    for _, _, caption, identity, hit, text in found:
        assert (hit == "hit") == (images[int(caption)] == image) and int(identity) == images[
            int(caption)
        ]
        assert text.removesuffix(" |") == captions[int(caption)]
    evaluation.main([str(run), "--query", captions[0], "--topk", str(num_images)])
    found = [
        line.split(" | ")
        for line in capsys.readouterr().out.splitlines()
        if re.match(r"\| \d+ \|", line)
    ]
    assert len(found) == num_images
    for row in found:
        assert row[-1].removesuffix(" |") == captions[images.index(int(row[2]))]


def test_ids_inside_the_lines_are_warned_about(case, fit, capsys):
    folder, options = case("token")
    fit("token")
    printed = capsys.readouterr().out
    for split in SIZES:
        assert (
            f"warning: {folder / split}_caps.txt: its lines "
            "hold more than captions: found `name#number`"
        ) in printed
        assert f"cut -f 2- < {folder / split}_caps.txt > " in printed
    assert check(folder) == 1
    printed = capsys.readouterr().out
    assert "to fix: 3\n" in printed and printed.count("`name#number`, a tab and a text") == 3


def test_an_id_a_caption_with_its_ending_finds_pictures(case, fit, capsys, tmp_path):
    folder, _ = case("ids_jpg")
    assert check(folder) == 0
    assert "  ids       20, all different (100 lines, one per caption)\n" in capsys.readouterr().out
    run, _ = fit("ids_jpg")
    for image in range(20):
        (tmp_path / f"test_scene_{image}.jpg").write_bytes(PICTURE)
    capsys.readouterr()
    evaluation.main([str(run), "--report", "--images", str(tmp_path)])
    assert "pictures:" not in capsys.readouterr().out  # none is missing
    (page,) = run.glob("report*.html")
    assert page.read_text().count('<img class="picture"') > 20
    (tmp_path / "test_scene_3.jpg").unlink()
    # the ending of another form of the pictures
    (tmp_path / "test_scene_3.png").write_bytes(b"\x89PNG")
    (tmp_path / "test_scene_4.jpg").unlink()
    evaluation.main([str(run), "--report", "--images", str(tmp_path), "--gallery", "20"])
    printed = capsys.readouterr().out
    assert "pictures: found 19 of 20" in printed and "test_scene_4.jpg, test_scene_4.gif" in printed


def test_a_blank_line_at_the_end_is_ignored_and_named(case, fit, capsys):
    folder, _ = case("trailing")
    assert check(folder) == 0
    assert "test_caps.txt: 1 blank line at the end ignored" in capsys.readouterr().out
    _, scores = fit("trailing")
    printed = capsys.readouterr().out
    for split in SIZES:
        assert f"{folder / split}_caps.txt: 1 blank line at the end ignored" in printed
    assert scores == fit("five")[1]


def test_what_was_decided_on_rows_is_said(case, fit, capsys):
    for name, expected in (
        ("one", "all different: one caption per image"),
        ("three repeated", "in groups of 3"),
    ):
        capsys.readouterr()
        folder, options = case(name)
        run, _ = fit(
            name, "--val_step", "2", "--batch_sampling", "neighbour", "--batch_clusters", "2"
        )
        evaluation.main([str(run)])
        assert expected in capsys.readouterr().out.split("\n\n")[0]
    assert Path(run, "model_best.pth").exists()
