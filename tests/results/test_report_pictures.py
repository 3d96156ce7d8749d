"""The gallery of the report page: queries, results, photographs, drawn scenes."""

import base64
import re
import shutil

import numpy as np
import pytest
from pages import Page, write

from lib.data import demo_scenes, demo_settings
from lib.data.layout import read_lines
from lib.evaluation import metrics
from lib.results import html_report, pictures, search
from lib.system import images


@pytest.fixture(scope="module")
def data(whole):
    return whole


@pytest.fixture(scope="module")
def finished(reported_run):
    return reported_run


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def gallery(page):
    """The four parts of the gallery: lists of (heading, [(hit, miss or truth, text)])."""
    text = page[page.index('id="gallery"') :]
    parts = text.split("<h3>")[1:]
    return [
        [
            (
                query,
                [
                    (kind, item)
                    for kind, item in re.findall(r'<li class="(hit|miss|truth)">(.*?)</li>', query)
                ],
            )
            for query in part.split('<div class="query')[1:]
        ]
        for part in parts
    ]


def test_the_gallery_shows_the_best_of_every_query(run, data, finished):
    found = gallery(write(run, "--gallery", 3, "--topk", 4))
    assert [len(part) for part in found] == [3, 3, 3, 3]
    sims = np.load(finished / "results_demo.npy")["sims"]
    ids = read_lines(data / "demo_precomp" / "test_ids.txt")
    captions = read_lines(data / "demo_precomp" / "test_caps.txt")
    ranks = metrics.ranks(sims)
    truths = 0
    for part in (found[0], found[2]):
        for query, results in part:
            image = int(
                re.search(r"id (\d+) \(image (\d+)\); its best caption has rank (\d+)", query)[2]
            )
            rank = ranks.image_to_text[image] + 1
            assert f"id {ids[image]} (image {image}); its best caption has rank {rank}<" in query
            shown = np.argsort(-sims[image], kind="stable")[:4].tolist()
            if rank > 4:
                shown.append(5 * image + sims[image, 5 * image : 5 * image + 5].argmax())
                assert results[-1][0] == "truth" and f">true match, rank {rank}<" in results[-1][1]
                truths += 1
            for caption, (kind, item) in zip(shown, results, strict=True):
                assert f">{captions[caption]}</span>" in item and (kind != "miss") == (
                    caption // 5 == image
                )
                assert f"{sims[image, caption]:.3f}" in item and ("✓ hit" in item) == (
                    kind == "hit"
                )
    for part in (found[1], found[3]):
        for query, results in part:
            caption = captions.index(re.search(r"<q>(.*?)</q>", query)[1])
            rank = ranks.text_to_image[caption] + 1
            assert f"its image has rank {rank}<" in query
            shown = np.argsort(-sims[:, caption], kind="stable")[:4].tolist()
            if rank > 4:
                shown.append(caption // 5)
                assert results[-1][0] == "truth" and f">true match, rank {rank}<" in results[-1][1]
                truths += 1
            for image, (kind, item) in zip(shown, results, strict=True):
                name = f"id {ids[image]} (image {image})"
                assert (
                    f'aria-label="{name}: ' in item and f'<span class="name">{name}</span>' in item
                )
                assert f"{sims[image, caption]:.3f}" in item and (kind != "miss") == (
                    caption // 5 == image
                )
    assert truths > 3
    worst = sorted(ranks.image_to_text.tolist(), reverse=True)[:3]
    assert [int(re.search(r"has rank (\d+)", query)[1]) - 1 for query, _ in found[2]] == worst
    worst = sorted(ranks.text_to_image.tolist(), reverse=True)[:3]
    assert [int(re.search(r"has rank (\d+)", query)[1]) - 1 for query, _ in found[3]] == worst


def test_a_gallery_of_none_and_of_more_than_there_is(run):
    assert [len(part) for part in gallery(write(run, "--gallery", 0))] == [0, 0, 0, 0]
    assert [len(part) for part in gallery(write(run, "--gallery", 99, "--topk", 99))] == [
        10,
        50,
        10,
        50,
    ]


PNG = images.encode_png(np.zeros((2, 2, 3), np.uint8))


@pytest.fixture
def photographs(data, tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    ids = read_lines(data / "demo_precomp" / "test_ids.txt")
    for number, identity in enumerate(map(int, ids)):
        name = ("{0}.jpg", "COCO_val2014_{0:012d}.jpg", "{0:012d}.jpg", "{0}.png")[
            number % 4
        ].format(identity)
        (folder / name).write_bytes(
            b"\xff\xd8\xff\xe0" + bytes([number]) * 10 if number % 4 != 3 else PNG
        )
    return folder


def test_photographs_are_put_in_byte_for_byte(run, data, photographs):
    found = Page(write(run, "--images", photographs, "--gallery", 10))
    shown = {
        attributes["alt"]: attributes["src"]
        for _, attributes, _ in found.all("img", class_="picture")
    }
    captions = read_lines(data / "demo_precomp" / "test_caps.txt")
    for number, identity in enumerate(read_lines(data / "demo_precomp" / "test_ids.txt")):
        kind, content = shown[f"id {identity} (image {number}): {captions[5 * number]}"].split(
            ";base64,"
        )
        assert kind == ("data:image/png" if number % 4 == 3 else "data:image/jpeg")
        assert base64.b64decode(content) == (
            PNG if number % 4 == 3 else b"\xff\xd8\xff\xe0" + bytes([number]) * 10
        )
    assert not found.all("svg", class_="picture") and "not shown" not in "".join(found.texts("p"))


def test_photographs_that_are_missing_large_or_too_many_leave_a_frame(
    data, photographs, monkeypatch
):
    ids = read_lines(data / "demo_precomp" / "test_ids.txt")
    index = search.SplitIndex(["caption"] * 50, ids, True, np.arange(50) // 5)
    (photographs / f"{ids[0]}.jpg").unlink()
    (photographs / f"{ids[3]}.png").write_text("<svg onload='alert(1)'>")
    (photographs / f"{ids[4]}.jpg").write_bytes(b"\xff\xd8\xff" + bytes(3_000_000))
    shown = pictures.Pictures(index, photographs)
    for image in (0, 3, 4):
        picture = shown.of(image)
        assert picture.caption == "caption" and not picture.photograph and not picture.drawing
    # 3 and 4 are there
    assert [identity for identity, is_found in shown.found.items() if not is_found] == [ids[0]]
    assert shown.num_missing == 3 and shown.of(1).photograph
    monkeypatch.setattr(pictures, "MOST_PHOTOGRAPHS", 2)
    assert shown.of(2).photograph and shown.of(5).caption and shown.num_missing == 4


def test_the_terminal_tells_how_many_pictures_were_found(run, data, photographs, capsys):
    ids = read_lines(data / "demo_precomp" / "test_ids.txt")
    write(run, "--images", photographs, "--gallery", 10)
    assert "pictures:" not in capsys.readouterr().out
    (photographs / f"{ids[0]}.jpg").unlink()
    write(run, "--images", photographs, "--gallery", 10)
    coco = f"COCO_val2014_{int(ids[0]):012d}.jpg"
    assert "not shown: the file is missing" in (run / "report.html").read_text()
    names = f"{ids[0]}.jpg, {coco}"
    expected = f"pictures: found 9 of 10 in {photographs}; looked for file names such as {names}\n"
    assert capsys.readouterr().out.endswith(f"report: {run / 'report.html'}\n{expected}")


def test_control_characters_are_shown_as_escapes():
    show = html_report.templates().get_template("picture.html").module.show
    shown = show(pictures.Picture("a\x1b[31m\u202e", "b\0\x85 <b>"))
    assert "b\\x00\\x85 &lt;b&gt;<" in shown
    shown = show(pictures.Picture('a\x1b\u202e"', photograph="data:,"))
    assert 'alt="a\\x1b\\u202e&#34;"' in shown


def test_a_name_of_letters_means_no_number():
    assert pictures.file_names("dog") == ["dog.jpg", "dog.jpeg", "dog.png", "dog.webp", "dog.gif"]
    assert "COCO_train2014_000000000188.jpg" in pictures.file_names("188")


def test_an_id_leads_to_no_other_folder(photographs, tmp_path):
    (tmp_path / "secret.jpg").write_bytes(b"\xff\xd8\xff")
    for identity in ("../secret", str(tmp_path / "secret"), "..", "", "²"):
        shown = pictures.Pictures(
            search.SplitIndex(["caption"] * 5, [identity], True, np.zeros(5, int)), photographs
        )
        assert not shown.of(0).photograph and shown.of(0).caption


def test_every_kind_colour_and_background_can_be_drawn():
    assert set(pictures.SHAPES) == set(demo_settings.KINDS) and set(pictures.COLOURS) == set(
        demo_settings.COLOURS
    )
    assert set(pictures.GROUNDS) == set(demo_settings.BACKGROUNDS) and set(pictures.EDGES) == set(
        demo_settings.MATERIALS
    )


def test_a_scene_is_drawn_where_its_things_stand():
    scene = demo_scenes.scenes("test", size=8)[7]
    show = html_report.templates().get_template("picture.html").module.show
    found = Page(show(pictures.draw(scene, "image 7")))
    label = found.all("svg")[0][1]["aria-label"]
    places = [attributes["transform"] for _, attributes, _ in found.all("g")]
    assert len(places) == len(scene.things)
    for thing in scene.things:
        assert f"{thing.size} {thing.colour} {thing.material} {thing.kind}" in label
        assert (
            f"translate({100 * thing.x:.1f} {100 * thing.y:.1f}) "
            f"scale({100 * demo_settings.SIDES[thing.size]:.1f})"
        ) in places


def test_scenes_are_drawn_only_for_the_captions_that_they_were_told_in(run, data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "data") / "demo_precomp"
    captions = read_lines(folder / "test_caps.txt")
    (folder / "test_caps.txt").write_text(
        "".join(f"{caption}\n" for caption in captions[5:] + captions[:5])
    )
    text = write(run, "--data_path", tmp_path / "data")
    assert not Page(text).all("svg", class_="picture") and "use --images FOLDER" in text
