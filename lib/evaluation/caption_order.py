"""The usual order of captions: the same number for each image, image after image."""

import numpy as np

CAPTIONS_PER_IMAGE = 5  # in Flickr30K, COCO and the demo data


def captions_in_order(num_images: int, num_captions: int) -> np.ndarray:
    """The image of each caption, (C,), if captions are in order, the same number for each image.

    Raises ValueError if the captions do not divide evenly among the images.
    """
    per_image, rest = divmod(num_captions, num_images or 1)
    if rest or not per_image or not num_images:
        raise ValueError(
            f"expected the same number of captions for every image, found {num_images} images and "
            f"{num_captions} captions"
        )
    return np.arange(num_captions) // per_image
