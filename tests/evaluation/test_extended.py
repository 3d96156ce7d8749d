"""ECCV Caption and CxC: what is handed to their package, and what is done without it."""

import sys
import types

import numpy as np
import pytest
import torch

from lib.evaluation import extended, metrics
from lib.evaluation.similarity import Similarity
from lib.results.search import SplitIndex
from lib.system.errors import InputError

NUM_IMAGES = 6


class Package:
    """The package's `Metrics` on six images, its numbers by loops;
    more than one image is right for a caption."""

    def __init__(self):
        self.coco_ids = np.random.default_rng(0).permutation(100)[: 5 * NUM_IMAGES]
        images = [900 + image for image in range(NUM_IMAGES)]
        captions = self.coco_ids.tolist()
        self.coco_gts = {
            "t2i": {caption: [images[n // 5]] for n, caption in enumerate(captions)},
            "i2t": {image: captions[5 * n : 5 * n + 5] for n, image in enumerate(images)},
        }
        self.more_gts = {
            "t2i": {
                caption: [images[n // 5], images[(n // 5 + 1) % 6]]
                for n, caption in enumerate(captions[:20])
            },
            "i2t": {
                image: captions[5 * n : 5 * n + 5] + captions[:2]
                for n, image in enumerate(images[1:4], 1)
            },
        }

    def compute_all_metrics(self, captions_of, images_of, target_metrics, Ks):
        found, given = {}, {"i2t": captions_of, "t2i": images_of}
        for name, truth in (
            ("coco_5k", self.coco_gts),
            ("cxc", self.more_gts),
            ("eccv", self.more_gts),
        ):
            for k in Ks:
                found[f"{name}_r{k}"] = {
                    way: np.mean(
                        [
                            bool(set(given[way][query][:k]) & set(right))
                            for query, right in truth[way].items()
                        ]
                    )
                    for way in given
                }
        for name in ("eccv_map_at_r", "eccv_rprecision"):
            found[name] = {
                way: np.mean(
                    [
                        len(set(given[way][query][: len(right)]) & set(right)) / len(right)
                        for query, right in self.more_gts[way].items()
                    ]
                )
                for way in given
            }
        assert {"eccv_r1", "coco_5k_recalls", "cxc_recalls"} <= set(target_metrics)
        return found


@pytest.fixture
def package(monkeypatch):
    module = types.ModuleType("eccv_caption")
    module.Metrics = Package
    monkeypatch.setitem(sys.modules, "eccv_caption", module)


def index(ids):
    return SplitIndex([], list(map(str, ids)), True, np.arange(5 * len(ids)) // 5)


def similarities(decimals=None):
    matrix = np.random.default_rng(1).standard_normal((NUM_IMAGES, 5 * NUM_IMAGES))
    matrix += 0.5 * np.eye(NUM_IMAGES).repeat(5, axis=1)
    return (matrix if decimals is None else matrix.round(decimals)).astype(np.float32)


@pytest.mark.parametrize("decimals", [None, 0], ids=["as they are", "with many equal ones"])
def test_the_packages_coco_recalls_are_ours(package, decimals):
    given = similarities(decimals)
    found = extended.measure(extended.annotations(index(range(900, 906))), given)
    scores = metrics.scores(metrics.ranks(given))
    extended.check_against(found, scores)
    assert (
        0 < found["coco_5k_r1"]["i2t"] < 100
        and found["cxc_r1"]["t2i"] >= found["coco_5k_r1"]["t2i"] * 0.5
    )
    with pytest.raises(AssertionError, match="COCO 5K"):
        extended.check_against(found, scores._replace(text_to_image=scores.image_to_text))


def test_the_table_holds_the_packages_numbers():
    names = [name for columns in extended.COLUMNS.values() for name in columns]
    text = extended.markdown(
        {name: {"i2t": 10.0 + n, "t2i": 20.0 + n} for n, name in enumerate(names)}
    )
    assert "| ECCV Caption | 10.0 | 11.0 | 12.0 | 20.0 | 21.0 | 22.0 |" in text
    assert "| CxC | 13.0 | 14.0 | 15.0 | 23.0 | 24.0 | 25.0 |" in text


def test_ids_are_checked_against_the_packages_order(package):
    captions = Package().coco_ids[::5]
    for ids in (range(900, 906), captions):
        assert extended.annotations(index(ids))
    with pytest.raises(InputError, match="image 1 is 902, expected 901"):
        extended.annotations(index([900, 902, 901, 903, 904, 905]))
    with pytest.raises(InputError, match="found 5 image ids, expected the 6"):
        extended.annotations(index(range(900, 905)))


def test_without_the_package_one_line_says_what_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "eccv_caption", None)
    with pytest.raises(InputError, match="pip install eccv_caption"):
        extended.annotations(index([]))


def test_the_real_package_agrees_on_coco_5k():
    pytest.importorskip(
        "eccv_caption", reason="eccv_caption is not installed: its numbers were not computed"
    )
    from eccv_caption import Metrics

    real = Metrics()
    images = [real.coco_gts["t2i"][caption][0] for caption in real.coco_ids[::5].tolist()]
    draw = np.random.default_rng(0)
    image_rows = draw.standard_normal((5000, 8))
    caption_rows = image_rows.repeat(5, axis=0) + 0.3 * draw.standard_normal((25000, 8))
    given = Similarity(torch.from_numpy(image_rows).float(), torch.from_numpy(caption_rows).float())
    found = extended.measure(extended.annotations(index(images)), given)
    extended.check_against(found, metrics.scores(metrics.ranks(given)))
    assert all(0 < value < 100 for both in found.values() for value in both.values())
