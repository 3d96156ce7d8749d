"""Turn pictures into region features: a network's feature map, averaged to a small grid.

`build_extractor` makes an extractor from the name of a network, `load_extractor` from the record
that `extract` wrote.
"""

# n pictures, R regions, D region feature size, h x w positions of a feature map

import hashlib
import math
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from ..system.console import one_line
from ..system.errors import InputError, first_sentence
from . import efficientnet, extraction_record
from .extraction_record import DEFAULT_MODEL, FORMAT, Record
from .picture_files import require_pillow

if TYPE_CHECKING:
    from PIL.Image import Image

BATCH_SIZE = 8  # on a CPU, larger batches take longer to allocate memory
VERSIONS = "torch", "transformers", "pillow"


class Backbone(Protocol):
    """A network that gives feature maps.

    preprocessing: JSON values; unused: names of weights that the features do not depend on.
    """

    network: Any  # torch.nn.Module
    weights_source: str
    preprocessing: dict[str, Any]
    unused: frozenset[str]

    def pixels(self, pictures: Sequence["Image"]) -> torch.Tensor: ...
    def feature_map(self, pixels: torch.Tensor) -> torch.Tensor: ...


class Extractor:
    """Region features of pictures.

    record: what the features depend on (lib/data/extraction_record.py); batch_size: number of
    pictures that the network processes at once.
    """

    def __init__(
        self, backbone: Backbone, name: str, regions: int, device: torch.device | str = "cpu"
    ) -> None:
        """regions: maximum number R. The grid is the largest square that fits, or less if the
        feature map is smaller. Raises InputError."""
        self.backbone, self.device, self.batch_size = backbone, torch.device(device), BATCH_SIZE
        backbone.network.to(self.device)
        self.side = math.isqrt(regions)
        self.grid: tuple[int, int] | None = None
        from PIL import Image

        # the grid and D depend on the network; a grey picture shows them
        shape = self.features([Image.new("RGB", (320, 240), "grey")]).shape
        assert self.grid is not None
        self.record: Record = dict(
            format=FORMAT,
            model=name,
            weights=dict(source=backbone.weights_source, sha256=hash_weights(backbone)),
            preprocessing=backbone.preprocessing,
            regions=regions,
            grid=list(self.grid),
            region_dim=shape[2],
            versions={package: metadata.version(package) for package in VERSIONS}
            | {"python": platform.python_version()},
        )

    @property
    def cells(self) -> np.ndarray | None:
        """The cells of the grid, (R, 4) float32: left, top, right, bottom as fractions of the
        picture; None if the network sees a part of the picture only."""
        if self.backbone.preprocessing.get("do_center_crop") or "crop_pct" in (
            self.backbone.preprocessing
        ):
            return None
        rows, columns = self.record["grid"]
        top, left = (axis.reshape(-1, 1) for axis in np.mgrid[:rows, :columns])
        corners = np.hstack([left, top, left + 1, top + 1])
        return (corners / [columns, rows, columns, rows]).astype(np.float32)

    def features(self, pictures: Sequence["Image"]) -> np.ndarray:
        """Region features (n, R, D), float32, of pictures in RGB. Raises InputError if the network
        gives NaN or Inf."""
        blocks = [
            self._features(pictures[start : start + self.batch_size])
            for start in range(0, len(pictures), self.batch_size)
        ]
        return np.concatenate(blocks)

    @torch.inference_mode()
    def _features(self, pictures: Sequence["Image"]) -> np.ndarray:
        pixels = self.backbone.pixels(pictures).to(self.device)
        found = self.backbone.feature_map(pixels).float()  # (n, D, h, w)
        if self.grid is None:
            self.grid = min(self.side, found.size(2)), min(self.side, found.size(3))
        regions = F.adaptive_avg_pool2d(found, self.grid).flatten(2).transpose(1, 2)
        if not regions.isfinite().all():
            raise InputError(
                f"--model {self.backbone.weights_source}: the features contain NaN or Inf, "
                "expected finite features. Copy or download the model again"
            )
        return regions.contiguous().cpu().numpy()


def hash_weights(backbone: Backbone) -> str:
    """SHA-256 of the weights that the features depend on, whatever their names and order."""
    digests = sorted(
        hashlib.sha256(
            str((tuple(value.shape), str(value.dtype))).encode()
            + np.ascontiguousarray(value.cpu().numpy()).tobytes()
        ).digest()
        for name, value in backbone.network.state_dict().items()
        if name not in backbone.unused
    )
    return hashlib.sha256(b"".join(digests)).hexdigest()


def build_extractor(model: str, regions: int = 36, device: torch.device | str = "cpu") -> Extractor:
    """The extractor of a network. Raises InputError if it cannot be loaded.

    model: efficientnet_lite0, or a folder or hub name of transformers.
    """
    require_pillow()
    if model == DEFAULT_MODEL:
        return Extractor(efficientnet.EfficientNetLite0(), model, regions, device)
    from .vision_model import VisionModel

    return Extractor(VisionModel(model), model, regions, device)


def load_extractor(record: Mapping[str, Any], device: torch.device | str = "cpu") -> Extractor:
    """The extractor that a record describes. Raises InputError if the network cannot be loaded, or
    if it is no longer the same."""
    try:
        record = extraction_record.check(record)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"not the record of an extraction (found {first_sentence(error)}, expected the content "
            "of an extraction.json). Pass that"
        ) from error
    found = build_extractor(record["model"], record["regions"], device)
    for what in ("weights", "preprocessing", "grid", "region_dim"):
        now, before = found.record[what], record[what]
        if what == "weights":
            now, before = now["sha256"], before["sha256"]
        if now != before:
            raise InputError(
                f"{one_line(record['model'])}: this network differs from the one that made the "
                f"features: another value of {what} (found {one_line(str(now)):.200}, expected "
                f"{one_line(str(before)):.200}). Install or copy the same network, or extract the "
                "features again"
            )
    return found
