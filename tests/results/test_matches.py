"""Which words match which regions: the numbers, and how the report shows them."""

import re
import shutil

import numpy as np
import pytest
import torch
from pages import Page, write

import eval as evaluation
import train
from lib.data.layout import read_lines
from lib.evaluation import encoding
from lib.model import load
from lib.results import html_report, matches, runs
from lib.results.matches import Box, WordRegions, matched_pair, word_regions
from lib.results.pictures import Picture
from lib.system.errors import InputError


@pytest.fixture(scope="module")
def data(whole):
    return whole


@pytest.fixture
def run(reported_run, tmp_path):
    return shutil.copytree(reported_run, tmp_path / "run")


def opened(run, data):
    """The model of a run and its test split."""
    options = train.arguments.parse_evaluation(["--model_path", str(run)])
    return load(run, device="cpu"), runs.open_run(run / "model_best.pth", options, "cpu").data


def test_the_cosines_are_those_of_the_fragments(run, data):
    trained, split = opened(run, data)
    captions = read_lines(data / "demo_precomp" / "test_caps.txt")
    found = word_regions(trained, split, 3, captions[15])
    with torch.no_grad():
        regions = torch.from_numpy(split.image_regions(3))[None]
        of_regions = trained.model.image_encoder(regions, torch.tensor([36])).fragments[0]
        ids = [*split.captions.ids(15)]
        of_pieces = trained.model.text_encoder(
            torch.tensor([ids]), torch.tensor([len(ids)])
        ).fragments[0]
    cosines = [
        [float(torch.cosine_similarity(piece, region, dim=0)) for region in of_regions]
        for piece in of_pieces[1:-1]
    ]
    words = re.findall(r"\w+|[^\w\s]", captions[15].lower())
    assert found.words == words and found.cosines.shape == (len(words), 36)
    np.testing.assert_allclose(found.cosines, cosines, atol=1e-5)
    boxes = np.load(data / "demo_precomp" / "test_boxes.npy")
    np.testing.assert_array_equal(found.boxes, boxes[3])


def test_a_word_of_several_pieces_counts_by_its_best(run, data):
    trained, split = opened(run, data)
    whole = word_regions(trained, split, 0, "a redcat .")  # in pieces, or unknown as a whole
    starts = trained.tokenised(["a redcat ."]).captions.word_starts
    assert whole.words == ["a", "redcat", "."] and len(whole.cosines) == len(starts) - 1 == 3


def test_a_text_without_words_matches_nothing(run, data):
    trained, split = opened(run, data)
    found = word_regions(trained, split, 0, " ")
    assert found.words == [] and found.cosines.shape == (0, 36)
    assert matched_pair(found, "image 0", Picture("")).words == []


def test_the_best_regions_and_their_boxes():
    cosines = np.array([[0.1, 0.5, 0.3, 0.2], [0.9, 0.0, -1, 0.95]])
    boxes = np.array([[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.25], [0, 0, 1, 1], [0.25, 0.5, 0.5, 1]])
    pair = matched_pair(WordRegions(["red", "dog"], cosines, boxes), "image 0", Picture(""))
    red, dog = pair.words
    assert red.regions == [1, 2, 3] and dog.regions == [3, 0, 1]
    assert (red.score, dog.score) == (0.5, 0.95)
    assert (red.level, dog.level) == (0, matches.LEVELS - 1)
    assert red.boxes[0] == Box(50, 0, 50, 25) and dog.boxes[0] == Box(25, 50, 25, 50)
    unlocated = matched_pair(WordRegions(["red", "dog"], cosines, None), "", Picture(""))
    assert [word.boxes for word in unlocated.words] == [[], []]
    assert [word.regions for word in unlocated.words] == [[1, 2, 3], [3, 0, 1]]


def section(text):
    return text[text.index('<h2 id="matches">') : text.index('<h2 id="setup">')]


def test_the_report_shows_every_word_with_its_regions(run, data):
    text = write(run, "--gallery", 2)
    page, captions = Page(text), read_lines(data / "demo_precomp" / "test_caps.txt")
    trained, split = opened(run, data)
    assert len(page.all("figure", class_="match")) == 2
    for number, caption in enumerate(np.random.default_rng(0).permutation(len(captions))[:2], 1):
        found = word_regions(trained, split, caption // 5, captions[caption])
        labels = [
            ("".join(content), attributes)
            for name, attributes, content in page.all("label")
            if attributes["for"].startswith(f"match{number}-")
        ]
        assert [word for word, _ in labels] == found.words
        for row, (word, attributes) in zip(found.cosines, labels):
            (chosen,) = page.all("input", id=attributes["for"])
            assert chosen[1]["aria-label"] == f"Regions of {word}"
            regions = ", ".join(map(str, np.argsort(-row, kind="stable")[:3]))
            assert f">{word}: {row.max():.2f} with regions {regions}</p>" in text
    assert len(page.all("rect", class_="rank1")) == len(page.all("label"))
    assert "has no boxes" not in section(text)
    chosen = [attributes["id"] for _, attributes, _ in page.all("input") if "checked" in attributes]
    best = [
        1
        + int(word_regions(trained, split, caption // 5, captions[caption]).cosines.max(1).argmax())
        for caption in np.random.default_rng(0).permutation(len(captions))[:2]
    ]
    assert chosen == [f"match1-{best[0]}", f"match2-{best[1]}"]


def test_without_boxes_the_report_says_so(run, data, tmp_path):
    moved = shutil.copytree(data, tmp_path / "data")
    (moved / "demo_precomp" / "test_boxes.npy").unlink()
    text = section(write(run, "--data_path", moved))
    assert "The data folder has no boxes (SPLIT_boxes.npy)" in text and "<rect class" not in text
    assert section(write(run, "--gallery", 0)).count("No pair was chosen.") == 1


def test_boxes_of_another_number_of_images_are_refused_before_anything_is_computed(
    run, data, tmp_path, monkeypatch
):
    moved = shutil.copytree(data, tmp_path / "data") / "demo_precomp" / "test_boxes.npy"
    np.save(moved, np.load(moved)[:-1])
    monkeypatch.setattr(encoding, "similarities", None)
    with pytest.raises(InputError, match="expected numbers of shape .*you can remove this"):
        evaluation.main([str(run), "--data_path", str(tmp_path / "data"), "--report"])


def test_words_are_escaped():
    word = matches.MatchedWord("<b>", 0.5, 0, [0], [Box(0, 0, 1, 1)])
    pair = matches.MatchedPair("<i>", [word], Picture("<u>", caption="<u>"), 0)
    template = html_report.templates().get_template("match.html")
    text = template.module.show_match(pair, "match1")
    assert not re.search("<[biu]>", text) and "&lt;b&gt;" in text and "&lt;i&gt;" in text
