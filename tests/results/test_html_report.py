"""The report page: well-formed, self-contained, its numbers those of metrics.json,
its captions harmless."""

import base64
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import PROCESS_TIMEOUT
from pages import Page, cells, read_png, write

import eval as evaluation
from lib.data.layout import read_lines
from lib.evaluation import bootstrap, encoding, metrics
from lib.evaluation.similarity import Similarity
from lib.evaluation.table import scores_by_label
from lib.results import charts, html_report, pictures, search
from lib.system.errors import InputError

PAGE = "report+with=bootstrap.html"
BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


@pytest.fixture(scope="module")
def data(whole):
    return whole


@pytest.fixture(scope="module")
def finished(reported_run):
    return reported_run


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture(scope="module")
def page(finished, tmp_path_factory):
    run = shutil.copytree(finished, tmp_path_factory.mktemp("page") / "run")
    return Page(write(run, "--bootstrap", 20)), run


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
    assert "There are no published results for this data set." in text


@pytest.mark.parametrize("dataset, labels", [("f30k", 1), ("coco_butd", 2)])
def test_published_rows_stand_beside_ours(dataset, labels):
    table = metrics.scores(metrics.Ranks(np.arange(10), np.arange(50)))
    shown = html_report.Evaluation(
        {"10": table}, dict(dataset=dataset, selected_on=["dev"]), None, None, None
    )
    rows = html_report.table_rows(shown)
    assert [row.kind for row in rows] == ["ours"] + ["published"] * labels
    for row in rows[1:]:
        expected = html_report.PUBLISHED[dataset[:4]][row.label.removesuffix(", published")]
        assert tuple(row.values[at] for at in (0, 1, 5, 6)) == expected
        assert {row.values[at] for at in (2, 3, 4, 7, 8, 9, 10)} == {None}
        assert row.selected_on in ("test", "testall")


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
    assert "contains no training logs" in write(run)


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


def test_the_matrix_is_that_of_the_similarities(page, finished):
    image = page[0].all("img", class_="matrix")[0][1]["src"]
    pixels = read_png(base64.b64decode(image.split(",")[1]))
    sims = np.load(finished / "results_demo.npy")["sims"][:, ::5]
    np.testing.assert_allclose(pixels.astype(int), charts.heat_map(sims), atol=1)


def test_another_split_has_a_report_of_its_own(run):
    before = write(run)
    evaluation.main(["--model_path", str(run), "--report", "--split", "dev"])
    assert "<h1>HREM: demo, split dev</h1>" in (run / "report_dev.html").read_text()
    assert (run / "report.html").read_text() == before


def test_the_page_says_which_run_it_is(page):
    assert page[0].texts("p", class_="soft")[1] == f"{page[1]}, bert, E 16, seed 0"


def test_pictures_are_shown_whole(page):
    (style,) = page[0].texts("style")
    assert "object-fit: contain" in style and "object-fit: cover" not in style


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


def test_a_published_checkpoint_of_coco_folds_is_reported(finished, tmp_path):
    """The label of several rows, and no log beside the file."""
    similarity = Similarity(torch.eye(10), torch.eye(10).repeat_interleave(5, dim=0))
    scores = scores_by_label(similarity, "testall")
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


def test_without_matplotlib_nothing_is_computed(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(encoding, "similarities", None)
    before = sorted(run.iterdir())
    with pytest.raises(InputError, match="pip install matplotlib"):
        write(run)
    assert sorted(run.iterdir()) == before


def test_without_a_report_matplotlib_is_not_imported(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # to import it fails
    evaluation.main(["--model_path", str(run)])
    root = pictures.Path(__file__).parents[2]
    for file in [*root.glob("*.py"), *root.glob("lib/**/*.py")]:
        assert not re.search("^(import|from) matplotlib", file.read_text(), re.M), file


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
