"""The report page: well-formed, self-contained, its numbers those of metrics.json,
its captions harmless."""

import base64
import json
import re
import shutil
import subprocess
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from helpers import PROCESS_TIMEOUT, shared

import eval as evaluation
import train
from lib.data import demo
from lib.data.layout import read_lines
from lib.evaluation import bootstrap, metrics, report
from lib.results import html_report, pictures, search
from lib.system import charts

OPTIONS = (
    "--dataset demo --num_epochs 2 --batch_size 20 "
    "--embed_size 16 --nhead 2 --workers 0 --warmup 12"
).split()
PAGE = "report+with=bootstrap.html"
VOID = {"meta", "img", "br"}
SHAPES = {"path", "rect", "circle", "line", "polyline"}
BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


class Page(HTMLParser):
    """A page read strictly: elements as (name, attributes, text inside);
    what is not well-formed fails."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.ids = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, name, attributes):
        names = [key for key, _ in attributes]
        assert len(set(names)) == len(names), (name, names)
        element = (name, dict(attributes), [])
        self.elements.append(element)
        self.ids += [value for key, value in attributes if key == "id"]
        if name not in VOID:
            self.open.append(element)

    def handle_startendtag(self, name, attributes):
        assert name in SHAPES, name
        self.handle_starttag(name, attributes)
        self.open.pop()

    def handle_endtag(self, name):
        assert self.open and self.open[-1][0] == name, (name, [element[0] for element in self.open])
        self.open.pop()

    def handle_data(self, data):
        for _, _, text in self.open:
            text.append(data)

    def all(self, name, **attributes):
        """Elements of a name with these attributes; class_ stands for class."""
        wanted = {key.strip("_"): value for key, value in attributes.items()}
        return [
            element
            for element in self.elements
            if element[0] == name
            and all(element[1].get(key) == value for key, value in wanted.items())
        ]

    def texts(self, name, **attributes):
        return ["".join(element[2]) for element in self.all(name, **attributes)]


@pytest.fixture(scope="module")
def data(whole):
    return whole


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    train.main(
        [*OPTIONS, "--data_path", str(data), "--logger_name", str(folder), "--log_step", "4"]
    )
    return shared(folder)


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def write(run, *more):
    """The text of the report that eval.py --report writes."""
    evaluation.main(["--model_path", str(run), "--report", *map(str, more)])
    found = run.glob("report*.html")  # that of other data has another name
    return max(found, key=lambda path: path.stat().st_mtime_ns).read_text()


@pytest.fixture(scope="module")
def page(finished, tmp_path_factory):
    run = shutil.copytree(finished, tmp_path_factory.mktemp("page") / "run")
    return Page(write(run, "--bootstrap", 20)), run


def cells(page, table):
    """Rows of a table by their heading."""
    found, text = {}, page
    body = re.search(rf'<table id="{table}">.*?<tbody>(.*?)</tbody>', text, re.DOTALL)[1]
    for row in re.findall(r"<tr.*?</tr>", body):
        found[re.search(r'<th scope="row">(.*?)</th>', row)[1]] = re.findall(r"<td>(.*?)</td>", row)
    return found


def test_the_table_is_that_of_metrics_json(page):
    text = (page[1] / PAGE).read_text()
    entry = json.loads((page[1] / "metrics.json").read_text())["test+with=bootstrap"]
    for label, scores in entry["scores"].items():
        names = ("r1", "r5", "r10", "medr", "meanr")
        expected = [scores[way][name] for way in ("i2t", "t2i") for name in names] + [
            scores["rsum"]
        ]
        assert cells(text, "table")[label] == ["dev", *(f"{value:.1f}" for value in expected)]
        intervals = [entry["bootstrap"][label][name][1:] for name in bootstrap.COLUMNS]
        assert cells(text, "intervals")[label] == [
            f"{low:.1f} to {high:.1f}" for low, high in intervals
        ]
    assert "There is no published row" in text


@pytest.mark.parametrize("dataset, labels", [("f30k", 1), ("coco_butd", 2)])
def test_published_rows_stand_beside_ours(dataset, labels):
    table = metrics.scores(metrics.Ranks(np.arange(10), np.arange(50)))
    shown = html_report.Evaluation(
        {"10": table}, dict(dataset=dataset, selected_on=["dev"]), None, None, None
    )
    found = cells(html_report._results(shown), "table")
    assert len(found) == 1 + labels
    for label, row in found.items():
        if "published" in label:
            expected = html_report.PUBLISHED[dataset[:4]][label.split(",")[0]]
            assert [row[at] for at in (1, 2, 6, 7)] == [f"{value:.1f}" for value in expected]
            assert {row[at] for at in (3, 4, 5, 8, 9, 10, 11)} == {"–"}


def test_the_published_rows_are_those_of_the_readme():
    readme = (pictures.Path(__file__).parents[2] / "README.md").read_text()
    for rows in html_report.PUBLISHED.values():
        for label, (i1, i5, t1, t5) in rows.items():
            assert re.search(
                rf"\| {label} \| HREM, published \| \w+ \| {i1} \| {i5} \| *\| {t1} \| {t5} \|",
                readme,
            )


def test_the_page_loads_nothing_and_runs_nothing(page):
    text = re.sub(r"data:image/\w+;base64,[\w+/=]+", "", (page[1] / PAGE).read_text())
    assert not re.search(
        r"https?:|//[a-z]|url\(|@import|<script|javascript:|<link|<iframe|\son\w+=", text
    )
    for name, attributes, _ in page[0].elements:
        for key in ("src", "href", "xlink:href", "data", "srcset"):
            value = attributes.get(key, "#")
            assert value.startswith("#") or name == "img" and value.startswith("data:image/")
    policy = {
        attributes.get("http-equiv"): attributes.get("content")
        for _, attributes, _ in page[0].all("meta")
    }
    assert (
        policy["Content-Security-Policy"]
        == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    )


def test_the_page_is_told_to_those_who_do_not_see_it(page):
    found, _ = page
    assert found.all("html", lang="en") and len(found.all("h1")) == 1 and found.all("main")
    assert all(attributes.get("alt") for _, attributes, _ in found.all("img"))
    for _, attributes, _ in found.all("svg"):
        assert attributes["role"] == "img" and attributes["aria-label"]
    assert all(
        attributes.get("scope") in ("col", "row", "colgroup")
        for _, attributes, _ in found.all("th")
    )
    assert len(set(found.ids)) == len(found.ids)
    for _, attributes, _ in found.all("a"):
        assert attributes["href"][1:] in found.ids
    assert len(found.all("caption")) == len(found.all("table"))


def test_curves_are_those_of_the_logs(page, finished):
    curves = html_report.read_curves(finished)
    assert (
        [step for step, _ in curves.loss]
        == [step for step, _ in curves.rate]
        == [4, 8, 10, 14, 18, 20]
    )
    assert [value for _, value in curves.rate] == [0.002] * 6
    log = (finished / "train.txt").read_text()
    assert [f"{value:.4f}" for _, value in curves.loss] == re.findall(r"loss (\d+\.\d{4})", log)
    assert curves.split == "dev" and [step for step, _ in curves.rsum] == [10, 20]
    assert [f"{value:.1f}" for _, value in curves.rsum] == re.findall(
        r"rsum (\d+\.\d)", (finished / "eval.txt").read_text()
    )[:2]
    labels = [attributes["aria-label"] for _, attributes, _ in page[0].all("svg", class_="chart")]
    assert len(labels) == 5 and labels[1].startswith("rsum on dev")


def test_lines_of_bad_steps_leave_no_point(tmp_path):
    (tmp_path / "train.txt").write_text(
        "train: x\nepoch 0 step 4: loss nan (base nan), gradient nan, rate 0.002; skipped 4 steps "
        "whose loss\n"
        "epoch 0 step 8: loss 1.5000 (base 1.5000), gradient 0.100, rate 2e-05\n"
    )
    curves = html_report.read_curves(tmp_path)
    assert (
        curves.loss == [(8, 1.5)] and curves.rate == [(4, 0.002), (8, 2e-05)] and curves.rsum == []
    )


def test_a_folder_without_logs_is_reported_without_curves(run):
    for name in ("train.txt", "eval.txt"):
        (run / name).unlink()
    assert "holds no logs of a training" in write(run)


def test_histograms_count_every_rank_once():
    ranks = np.random.default_rng(0).integers(0, 900, 2000)
    found = html_report.histogram(ranks)
    for label, count in found.items():
        low, high = {"> 500": (501, 10**9)}.get(label) or [
            int(part) for part in (label.split("–") * 2)[:2]
        ]
        assert count == sum(low <= rank + 1 <= high for rank in ranks.tolist())
    assert sum(found.values()) == 2000 and list(found)[0] == "1" and list(found)[-1] == "> 500"
    assert html_report.histogram(np.array([0, 0, 1])) == {"1": 2, "2": 1}
    assert html_report.histogram(np.array([0, 7])) == {"1": 1, "2": 0, "3–5": 0, "6–10": 1}


@pytest.mark.parametrize(
    "low, high", [(0, 1), (0, 7), (-3, 12.5), (1e-5, 3e-5), (0, 600), (4, 4000), (0, 1e9)]
)
def test_ticks_are_few_and_round_and_inside(low, high):
    found = charts.ticks(low, high)
    assert 1 <= len(found) <= 7 and low <= found[0] + 1e-12 and found[-1] <= high * (1 + 1e-9)
    assert all(len(f"{tick:g}".split("e")[0].strip("-0.").replace(".", "")) <= 3 for tick in found)


def test_a_chart_of_one_point_or_a_level_line_is_drawn():
    for points in ([(10, 3.0)], [(1, 0.0), (2, 0.0)]):
        found = Page(charts.lines("a <title>", points, "x", "y"))
        xs = [float(part.split(",")[0]) for part in found.all("polyline")[0][1]["points"].split()]
        assert len(xs) == len(points) and all(charts.LEFT <= x <= charts.WIDTH for x in xs)


def read_png(content):
    """Pixels of a PNG, as its specification has it for this one kind."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    at, parts = 8, {}
    while at < len(content):
        size, name = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        parts[name] = content[at + 8 : at + 8 + size]
        assert int.from_bytes(content[at + 8 + size : at + 12 + size], "big") == zlib.crc32(
            name + parts[name]
        )
        at += 12 + size
    width, height = (int.from_bytes(parts[b"IHDR"][at : at + 4], "big") for at in (0, 4))
    assert parts[b"IHDR"][8:] == bytes([8, 2, 0, 0, 0]) and parts[b"IEND"] == b""
    rows = np.frombuffer(zlib.decompress(parts[b"IDAT"]), np.uint8).reshape(height, 1 + 3 * width)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, 3)


def test_a_png_holds_its_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(read_png(charts.png(pixels)), pixels)


def test_heat_goes_from_dark_to_bright():
    found = charts.heat(np.array([[0.0, 0.5, 1.0]]))
    assert found.tolist() == [
        [list(charts.COLOURS[0]), list(charts.COLOURS[2]), list(charts.COLOURS[-1])]
    ]
    assert (charts.heat(np.ones((2, 2))) == charts.COLOURS[0]).all()


def test_the_matrix_is_that_of_the_similarities(page, finished):
    image = page[0].all("img", class_="matrix")[0][1]["src"]
    pixels = read_png(base64.b64decode(image.split(",")[1]))
    sims = np.load(finished / "results_demo.npy")["sims"][:, ::5]
    np.testing.assert_allclose(pixels.astype(int), charts.heat(sims), atol=1)


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
                assert results[-1][0] == "truth" and f">truth, rank {rank}<" in results[-1][1]
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
                assert results[-1][0] == "truth" and f">truth, rank {rank}<" in results[-1][1]
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


def test_another_split_has_a_report_of_its_own(run):
    before = write(run)
    evaluation.main(["--model_path", str(run), "--report", "--split", "dev"])
    assert "<h1>HREM: demo, split dev</h1>" in (run / "report_dev.html").read_text()
    assert (run / "report.html").read_text() == before


def test_the_page_says_which_run_it_is(page):
    assert page[0].texts("p", class_="soft")[1] == f"{page[1]}, bert, E 16, seed 0"


def test_pictures_are_shown_whole():
    assert (
        "object-fit: contain" in html_report.STYLE and "object-fit: cover" not in html_report.STYLE
    )


def test_the_report_is_the_same_every_time(run):
    assert write(run) == write(run)


HOSTILE = '<script>alert("1")</script> & </p>\'"><img src=x onerror=alert(1)>'


def test_captions_and_ids_are_escaped(run, data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "data") / "demo_precomp"
    captions = read_lines(folder / "test_caps.txt")
    (folder / "test_caps.txt").write_text("".join(f"{HOSTILE} {caption}\n" for caption in captions))
    (folder / "test_ids.txt").write_text("".join(f"../{HOSTILE}{image}\n" for image in range(10)))
    (tmp_path / "pictures").mkdir()
    for more in ((), ("--images", tmp_path / "pictures")):
        text = write(run, "--data_path", tmp_path / "data", *more)
        found = Page(text)  # every tag is ours and closed
        assert not found.all("script") and "<script" not in text and "<img src=x" not in text
        assert all(attributes["src"].startswith("data:") for _, attributes, _ in found.all("img"))
        assert any(HOSTILE in words for words in found.texts("span", class_="words"))
        frames = found.texts("span", class_="picture none") if more else found.texts("title")
        assert any(HOSTILE in words for words in frames)


PNG = charts.png(np.zeros((2, 2, 3), np.uint8))


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
    assert not found.all("svg", class_="picture") and "are not shown" not in "".join(
        found.texts("p")
    )


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
        assert shown.of(image) == '<span class="picture none">caption</span>'
    # 3 and 4 are there
    assert [identity for identity, is_found in shown.found.items() if not is_found] == [ids[0]]
    assert shown.num_missing == 3 and shown.of(1).startswith("<img")
    monkeypatch.setattr(pictures, "MOST_PHOTOGRAPHS", 2)
    assert (
        shown.of(2).startswith("<img")
        and shown.of(5).startswith("<span")
        and shown.num_missing == 4
    )


def test_the_terminal_tells_how_many_pictures_were_found(run, data, photographs, capsys):
    ids = read_lines(data / "demo_precomp" / "test_ids.txt")
    write(run, "--images", photographs, "--gallery", 10)
    assert "pictures:" not in capsys.readouterr().out
    (photographs / f"{ids[0]}.jpg").unlink()
    write(run, "--images", photographs, "--gallery", 10)
    coco = f"COCO_val2014_{int(ids[0]):012d}.jpg"
    assert "their pictures are not shown" in (run / "report.html").read_text()
    expected = (
        f"pictures: 9 of 10 found in {photographs}; looked for names such as {ids[0]}.jpg, {coco}\n"
    )
    assert capsys.readouterr().out.endswith(f"report: {run / 'report.html'}\n{expected}")


def test_a_name_of_letters_means_no_number():
    assert pictures.file_names("dog") == ["dog.jpg", "dog.jpeg", "dog.png", "dog.webp", "dog.gif"]
    assert "COCO_train2014_000000000188.jpg" in pictures.file_names("188")


def test_an_id_leads_to_no_other_folder(photographs, tmp_path):
    (tmp_path / "secret.jpg").write_bytes(b"\xff\xd8\xff")
    for identity in ("../secret", str(tmp_path / "secret"), "..", "", "²"):
        shown = pictures.Pictures(
            search.SplitIndex(["caption"] * 5, [identity], True, np.zeros(5, int)), photographs
        )
        assert "<img" not in shown.of(0)


def test_every_kind_colour_and_background_can_be_drawn():
    assert set(pictures.SHAPES) == set(demo.KINDS) and set(pictures.COLOURS) == set(demo.COLOURS)
    assert set(pictures.GROUNDS) == set(demo.BACKGROUNDS) and set(pictures.EDGES) == set(
        demo.MATERIALS
    )


def test_a_scene_is_drawn_where_its_things_stand():
    scene = demo.scenes("test", size=8)[7]
    found = Page(pictures.draw(scene, "image 7"))
    label = found.all("svg")[0][1]["aria-label"]
    places = [attributes["transform"] for _, attributes, _ in found.all("g")]
    assert len(places) == len(scene.things)
    for thing in scene.things:
        assert f"{thing.size} {thing.colour} {thing.material} {thing.kind}" in label
        assert (
            f"translate({100 * thing.x:.1f} {100 * thing.y:.1f}) "
            f"scale({100 * demo.SIDES[thing.size]:.1f})"
        ) in places


def test_scenes_are_drawn_only_for_the_captions_that_they_were_told_in(run, data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "data") / "demo_precomp"
    captions = read_lines(folder / "test_caps.txt")
    (folder / "test_caps.txt").write_text(
        "".join(f"{caption}\n" for caption in captions[5:] + captions[:5])
    )
    text = write(run, "--data_path", tmp_path / "data")
    assert not Page(text).all("svg", class_="picture") and "give --images a folder" in text


def test_a_published_checkpoint_of_coco_folds_is_reported(finished, tmp_path):
    """The label of several rows, and no log beside the file."""
    similarity = metrics.Similarity(torch.eye(10), torch.eye(10).repeat_interleave(5, dim=0))
    scores = report.tables(similarity, "testall")
    facts = dict(
        dataset="coco",
        split="testall",
        selected_on=["test"],
        title="a <title>",
        options=[{"x": "<y>"}],
    )
    captions, ids = [f"caption {number}" for number in range(50)], list(map(str, range(10)))
    index = search.SplitIndex(captions, ids, False, np.arange(50) // 5)
    shown = html_report.Evaluation(scores, facts, similarity, index, pictures.Pictures(index))
    html_report.write(tmp_path / "report.html", shown)
    text = (tmp_path / "report.html").read_text()
    assert list(cells(text, "table")) == [
        "2 (mean of 5 folds)",
        "10",
        "COCO 1K, published",
        "COCO 5K, published",
    ]
    assert Page(text).texts("p", class_="soft")[0] == "a <title>"


@pytest.mark.skipif(not BROWSER, reason="no chromium found: the page was not opened in a browser")
def test_a_browser_opens_the_page_without_complaint(page, tmp_path):
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-background-networking "
        "--disable-component-update"
    )
    command = [BROWSER, *flags.split(), "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, "--enable-logging=stderr", "--dump-dom", (page[1] / PAGE).as_uri()],
        capture_output=True,
        text=True,
        timeout=PROCESS_TIMEOUT,
    )
    assert "<h1>HREM: demo, split test</h1>" in done.stdout
    assert done.stdout.count('class="query') == 24 and cells(done.stdout, "table").keys() == {"10"}
    assert "CONSOLE" not in done.stderr, done.stderr
