"""Searches of the search page, against the similarities of the evaluation."""

import threading

import numpy as np
import pytest
import torch
from damage import OPTIONS
from helpers import fit
from PIL import Image

import arguments
from lib.evaluation.encoding import similarities
from lib.model import checkpoint
from lib.results.runs import open_run
from lib.results.search import best_and_truth, build_index
from lib.results.searcher import Searcher
from lib.results.trained import load
from lib.system.errors import InputError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def searcher(finished, whole):
    return open_searcher(finished, whole)


def open_searcher(run, data_path):
    options = arguments.parse_evaluation([str(run), "--data_path", str(data_path)])
    opened, trained = open_run(checkpoint.find(run), options, CPU), load(run, "cpu")
    similarity = None
    if opened.model.similarity is None:
        similarity = similarities(opened.model, opened.data, CPU)
    return Searcher(trained, opened.data, build_index(opened.data), similarity)


def numbers(found):
    return [one.number for one in found]


def test_ranks_count_from_one_and_the_truth_is_added_if_it_is_not_shown():
    scores = np.array([0.1, 0.9, 0.5, 0.5])
    assert [tuple(one) for one in best_and_truth(scores, 2, {2})] == [
        (1, 1, 0.9, "miss"),
        (2, 2, 0.5, "hit"),
    ]
    assert [tuple(one) for one in best_and_truth(scores, 1, {0, 3})] == [
        (1, 1, 0.9, "miss"),
        (3, 3, 0.5, "truth"),
    ]
    assert [one.kind for one in best_and_truth(scores, 9, ())] == ["miss"] * 4


def test_captions_and_images_are_found_as_in_the_evaluation(searcher):
    matrix = searcher.similarity[:, :]
    for caption in (0, 7, 49):
        found = searcher.images_of_caption(caption, 10)
        assert numbers(found) == np.argsort(-matrix[:, caption], kind="stable").tolist()
        assert [one.number for one in found if one.kind == "hit"] == [caption // 5]
    for image in (0, 9):
        found = searcher.captions_of_image(image, 50)
        assert numbers(found) == np.argsort(-matrix[image], kind="stable").tolist()
        assert sorted(one.number // 5 for one in found if one.kind == "hit") == [image] * 5


def test_a_typed_caption_has_hits_and_another_text_has_none(searcher):
    caption = searcher.index.captions[7]
    found = searcher.images_of_text(caption, 10)
    assert [one.number for one in found if one.kind == "hit"] == [1]
    expected = {one.number: one.score for one in searcher.images_of_caption(7, 10)}
    assert {one.number: one.score for one in found} == pytest.approx(expected, abs=1e-5)
    assert {one.kind for one in searcher.images_of_text("a red dog", 10)} == {"miss"}


def test_a_new_picture_finds_captions(searcher, monkeypatch):
    class Extracts(type(searcher.trained)):
        def picture_regions(self, pictures):
            assert [type(picture) for picture in pictures] == [Image.Image]
            return searcher.data.image_regions(3)[None]

    picture = Image.new("RGB", (4, 4))
    with pytest.raises(InputError):  # this model has no feature extractor
        searcher.captions_of_picture(picture, 5)
    monkeypatch.setattr(searcher.trained, "__class__", Extracts)
    found = searcher.captions_of_picture(picture, 5)
    assert numbers(found) == numbers(searcher.captions_of_image(3, 5))
    assert {one.kind for one in found} == {"miss"}


def test_queries_are_answered_one_at_a_time(searcher, monkeypatch):
    inside, most = [], []
    encode = searcher.trained.encode_captions

    def watched(texts):
        inside.append(None)
        most.append(len(inside))
        found = encode(texts)
        inside.pop()
        return found

    monkeypatch.setattr(searcher.trained, "encode_captions", watched)
    queries = [
        threading.Thread(target=searcher.images_of_text, args=("a dog", 3)) for _ in range(8)
    ]
    for query in queries:
        query.start()
    for query in queries:
        query.join()
    assert most == [1] * 8


def test_a_model_with_cross_attention_scores_the_split(whole, tmp_path):
    run = fit([*OPTIONS, "--method", "scan"], whole, tmp_path / "run")
    searcher, matrix = open_searcher(run, whole), np.load(run / "results_demo.npy")["sims"]
    for found, scores in (
        (searcher.images_of_caption(7, 99), matrix[:, 7]),
        (searcher.images_of_text(searcher.index.captions[7], 99), matrix[:, 7]),
        (searcher.captions_of_image(3, 99), matrix[3]),
    ):
        assert len(found) == len(scores)
        assert [one.score for one in found] == pytest.approx(
            [scores[one.number] for one in found], abs=1e-4
        )
    with pytest.raises(InputError, match="no record of an extraction"):
        searcher.captions_of_picture(Image.new("RGB", (4, 4)), 5)
    searcher.trained.picture_regions = lambda pictures: searcher.data.image_regions(3)[None]
    found = searcher.captions_of_picture(Image.new("RGB", (4, 4)), 99)
    assert numbers(found) == numbers(searcher.captions_of_image(3, 99))
