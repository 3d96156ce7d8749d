"""Recalls that forgive what COCO's captions leave out: ECCV Caption and CxC,
computed by the package eccv_caption.

COCO counts one image as right for a caption, though others show the same; both sets add the pairs
that people accepted (Chun et al., ECCV 2022; Parekh et al., EACL 2021). The package is optional and
brings its own annotations.
"""

# N images, C captions

import contextlib
import io
import warnings

import numpy as np

from ..system.errors import InputError
from .metrics import CAPTIONS_PER_IMAGE, captions_in_order, top_indices

# items a query; the package counts COCO 1K inside them, and 50 hold fewer than ten of some folds
RETRIEVED = 200
CUTS = (1, 5, 10)
COLUMNS = {
    "ECCV Caption": ("eccv_map_at_r", "eccv_rprecision", "eccv_r1"),
    "CxC": ("cxc_r1", "cxc_r5", "cxc_r10"),
}
HEADER = "| | I2T mAP@R | R-Precision | R@1 | T2I mAP@R | R-Precision | R@1 |"
RECALL_HEADER = "| | I2T R@1 | R@5 | R@10 | T2I R@1 | R@5 | R@10 |"


def annotations(index):
    """The package's `Metrics`, if the split is COCO's 5000 test images in its order.
    Raises InputError.

    index: `lib.results.search.SplitIndex` of the split.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it would be faster with ujson
            from eccv_caption import Metrics
    except ImportError as error:
        raise InputError(
            f"--extended: needs the package eccv_caption ({error}), expected it beside torch: pip "
            "install eccv_caption"
        ) from error
    package = Metrics()
    captions = package.coco_ids[::CAPTIONS_PER_IMAGE].tolist()
    images = [package.coco_gts["t2i"][caption][0] for caption in captions]
    # some files hold the captions' ids
    if index.ids not in (list(map(str, images)), list(map(str, captions))):
        at = next(
            (n for n, (ours, theirs) in enumerate(zip(index.ids, images)) if ours != str(theirs)),
            None,
        )
        where = f"; image {at} is {index.ids[at]}, expected {images[at]}" if at is not None else ""
        raise InputError(
            f"--extended: found {len(index.ids)} image ids, expected the {len(images)} of COCO's "
            f"test split in its usual order{where}; evaluate --split testall of coco, with "
            "testall_ids.txt beside its features"
        )
    if not np.array_equal(
        index.caption_images, captions_in_order(len(images), len(package.coco_ids))
    ):
        raise InputError(
            f"--extended: found {len(index.captions)} captions, expected the "
            f"{len(package.coco_ids)} of COCO's test split, {CAPTIONS_PER_IMAGE} of each image in "
            "its usual order; evaluate --split testall of coco"
        )
    return package


def measure(package, similarity):
    """{name: {"i2t": percent, "t2i": percent}} of ECCV Caption, CxC and COCO 5K,
    as the package computes them.

    similarity: `lib.evaluation.metrics.Similarity`, or an array (N, C).
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
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
        found = package.compute_all_metrics(captions_of, images_of, target_metrics=wanted, Ks=CUTS)
    return {
        name: {way: 100.0 * float(value) for way, value in both.items()}
        for name, both in found.items()
    }


def check_against(found, scores):
    """The package's COCO 5K recalls are ours. found: of `measure`;
    scores: `metrics.Scores` of the whole split."""
    for way, ours in (("i2t", scores.image_to_text), ("t2i", scores.text_to_image)):
        theirs = [found[f"coco_5k_r{cut}"][way] for cut in CUTS]
        assert np.allclose(theirs, ours[:3], atol=1e-6), (
            f"{way}: COCO 5K recalls {theirs} of the package, {ours} here"
        )


def markdown(found):
    """Both tables, in percent."""
    rows = {
        label: (
            f"| {label} | "
            f"{' | '.join(f'{found[name][way]:.1f}' for way in ('i2t', 't2i') for name in names)} "
            "|"
        )
        for label, names in COLUMNS.items()
    }
    rule = "|---|---|---|---|---|---|---|"
    return "\n".join([HEADER, rule, rows["ECCV Caption"], "", RECALL_HEADER, rule, rows["CxC"]])
