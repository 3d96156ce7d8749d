"""ECCV Caption and CxC metrics for COCO, computed by the package eccv_caption.

COCO counts one image as correct for a caption, although other images may fit it too. Both data sets
add pairs that human annotators accepted (Chun et al., ECCV 2022; Parekh et al., EACL 2021). The
package is optional and includes its annotations.
"""

# N images, C captions

import contextlib
import io
import warnings
from typing import Any, Protocol

import numpy as np

from ..system.errors import InputError
from .caption_order import CAPTIONS_PER_IMAGE, captions_in_order
from .metrics import Scores
from .similarity import Similarities, top_indices

# Results per query. The package computes COCO 1K from these results: among 50, some folds would
# have fewer than ten.
RETRIEVED = 200
CUTS = (1, 5, 10)
COLUMNS = {
    "ECCV Caption": ("eccv_map_at_r", "eccv_rprecision", "eccv_r1"),
    "CxC": ("cxc_r1", "cxc_r5", "cxc_r10"),
}
HEADER = "| | I2T mAP@R | R-Precision | R@1 | T2I mAP@R | R-Precision | R@1 |"
RECALL_HEADER = "| | I2T R@1 | R@5 | R@10 | T2I R@1 | R@5 | R@10 |"


class Index(Protocol):
    """The part of `lib.results.search.SplitIndex` that is compared with COCO's test split."""

    @property
    def captions(self) -> list[str]: ...
    @property
    def ids(self) -> list[str]: ...
    @property
    def caption_images(self) -> np.ndarray: ...


def annotations(index: Index) -> Any:  # eccv_caption is optional, and has no types
    """Load the annotations: the package's `Metrics` object.

    Raises InputError if the package is missing, or if the split does not hold COCO's 5000 test
    images in their usual order.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the package suggests installing ujson
            from eccv_caption import Metrics
    except ImportError as error:
        raise InputError(
            f"--extended: the package eccv_caption cannot be imported (found {error}, expected it "
            "to be installed). Run: pip install eccv_caption"
        ) from error
    package = Metrics()
    captions = package.coco_ids[::CAPTIONS_PER_IMAGE].tolist()
    images = [package.coco_gts["t2i"][caption][0] for caption in captions]
    # some id files contain the ids of the captions
    if index.ids not in (list(map(str, images)), list(map(str, captions))):
        at = next(
            (n for n, (own, coco) in enumerate(zip(index.ids, images)) if own != str(coco)), None
        )
        where = f"; image {at} is {index.ids[at]}, expected {images[at]}" if at is not None else ""
        raise InputError(
            f"--extended: these are not COCO's test images (found {len(index.ids)} image ids, "
            f"expected the {len(images)} of COCO's test split in its usual order{where}). Evaluate "
            "--split testall of coco, with testall_ids.txt beside its features"
        )
    if not np.array_equal(
        index.caption_images, captions_in_order(len(images), len(package.coco_ids))
    ):
        raise InputError(
            f"--extended: these are not COCO's test captions (found {len(index.captions)} "
            f"captions, expected the {len(package.coco_ids)} of COCO's test split, "
            f"{CAPTIONS_PER_IMAGE} per image in the usual order). Evaluate --split testall of coco"
        )
    return package


def measure(package: Any, similarity: Similarities) -> dict[str, dict[str, float]]:
    """Compute ECCV Caption, CxC and COCO 5K: {metric: {"i2t": percent, "t2i": percent}}.

    package: from `annotations`; similarity: (N, C).
    """
    caption_ids = np.asarray(package.coco_ids)
    image_ids = np.array(
        [package.coco_gts["t2i"][int(caption)][0] for caption in caption_ids[::CAPTIONS_PER_IMAGE]]
    )
    num_images, num_captions = similarity.shape
    captions_of, images_of = {}, {}
    for image in range(num_images):
        order = top_indices(similarity[image : image + 1, :][0], RETRIEVED)
        captions_of[int(image_ids[image])] = caption_ids[order].tolist()
    for start in range(0, num_captions, RETRIEVED):
        columns = similarity[:, start : start + RETRIEVED]
        for caption, scores in enumerate(columns.T, start):
            images_of[int(caption_ids[caption])] = image_ids[
                top_indices(scores, RETRIEVED)
            ].tolist()
    wanted = ("eccv_r1", "eccv_map_at_r", "eccv_rprecision", "coco_5k_recalls", "cxc_recalls")
    with contextlib.redirect_stderr(io.StringIO()):  # hides progress bars
        results = package.compute_all_metrics(
            captions_of, images_of, target_metrics=wanted, Ks=CUTS
        )
    return {
        name: {direction: 100.0 * float(value) for direction, value in values.items()}
        for name, values in results.items()
    }


def check_against(measured: dict[str, dict[str, float]], scores: Scores) -> None:
    """Assert that the COCO 5K recalls of `measure` equal the scores of the whole split."""
    for direction, recalls in (("i2t", scores.image_to_text), ("t2i", scores.text_to_image)):
        package_recalls = [measured[f"coco_5k_r{cut}"][direction] for cut in CUTS]
        assert np.allclose(package_recalls, recalls[:3], atol=1e-6), (
            f"{direction}: COCO 5K recalls {package_recalls} of the package, {recalls} here"
        )


def markdown(measured: dict[str, dict[str, float]]) -> str:
    """Format the results of `measure` as two Markdown tables, in percent."""
    rows = {}
    for label, names in COLUMNS.items():
        cells = [f"{measured[name][way]:.1f}" for way in ("i2t", "t2i") for name in names]
        rows[label] = f"| {label} | {' | '.join(cells)} |"
    rule = "|---|---|---|---|---|---|---|"
    return "\n".join([HEADER, rule, rows["ECCV Caption"], "", RECALL_HEADER, rule, rows["CxC"]])
