"""A vision network of transformers, from a local folder or a hub name: ViT, DINOv2, Swin, ConvNeXt,
ResNet, and the vision towers of CLIP and SigLIP.

Its last hidden state becomes a feature map. Class and register tokens are left out.
"""

# n pictures, D features, T tokens

import contextlib
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from ..system.errors import InputError, first_sentence
from ..system.files import why_unreadable

if TYPE_CHECKING:
    from PIL.Image import Image

# settings of an image processor that change its output
PREPROCESSING = (
    "image_processor_type", "do_convert_rgb", "do_resize", "size", "crop_pct", "resample",
    "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize", "image_mean",
    "image_std", "do_pad", "pad_size",
)  # fmt: skip
FILES_READ = (".json", ".safetensors", ".bin")  # kinds of files that transformers reads
UNUSED_PARTS = ("pooler", "head", "layernorm_post", "classifier")  # after the last hidden state
DAMAGED = (  # exceptions by which transformers reports a bad folder or name
    OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, EOFError, ImportError,
    AssertionError, IndexError, pickle.UnpicklingError, SafetensorError, StrictDataclassError,
)  # fmt: skip


class VisionModel:
    """A vision network of transformers and its image processor. Raises InputError.

    unused: names of weights that are missing in the file and that the features do not depend on.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        _refuse_unreadable(name)
        with _quiet(), self._refusals("a vision network"):
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
            self.config = getattr(config, "vision_config", config)
            self.network, report = AutoModel.from_pretrained(
                name, config=self.config, trust_remote_code=False, output_loading_info=True
            )
            # the processor based on Pillow gives the same pixels with and without torchvision
            self.processor = AutoImageProcessor.from_pretrained(
                name, use_fast=False, trust_remote_code=False
            )
        missing = sorted(report["missing_keys"])
        needed = [key for key in missing if not set(key.split(".")) & {*UNUSED_PARTS}]
        if needed:
            raise InputError(
                f"--model {name}: the weights lack {needed[0]} and {len(needed) - 1} other "
                "entries, expected a whole vision network. Copy or download it again"
            )
        self.network = self.network.float().eval()
        self.unused = frozenset(missing)
        self.weights_source = name
        given = self.processor.to_dict()
        self.preprocessing: dict[str, Any] = {
            key: _plain(given[key]) for key in PREPROCESSING if given.get(key) is not None
        }

    def pixels(self, pictures: Sequence["Image"]) -> torch.Tensor:
        """Pictures in RGB as (n, 3, H, W). Raises InputError if they have different sizes."""
        with _quiet(), self._refusals("an image processor"):
            return self.processor(images=list(pictures), return_tensors="pt")["pixel_values"]

    def feature_map(self, pixels: torch.Tensor) -> torch.Tensor:
        """The last hidden state as (n, D, h, w). Raises InputError if it is not a grid."""
        with self._refusals("a vision network"):
            states = self.network(pixel_values=pixels).last_hidden_state
        if states.dim() == 4:
            return states
        height, width = self._grid(pixels)
        num_special = states.size(1) - height * width
        if states.dim() != 3 or not 0 <= num_special <= self._most_special():
            raise InputError(
                f"--model {self.name}: its output is not a grid (found {tuple(states.shape)} for "
                f"{pixels.size(2)} x {pixels.size(3)} pixels, expected {height} x {width} tokens). "
                "Give another model, such as a ViT, DINOv2, Swin, ConvNeXt, ResNet, CLIP or SigLIP"
            )
        patches = states[:, num_special:]  # the special tokens come first
        return patches.transpose(1, 2).unflatten(2, (height, width))

    def _grid(self, pixels: torch.Tensor) -> tuple[int, int]:
        """Height and width of the grid of tokens."""
        patch = getattr(self.config, "patch_size", None) or 1
        rows, columns = patch if isinstance(patch, (list, tuple)) else (patch, patch)
        # each stage of a Swin but the first halves the grid
        halvings = len(depths) - 1 if isinstance(depths := self._depths(), list) else 0
        height, width = pixels.size(2) // rows, pixels.size(3) // columns
        for _ in range(halvings):
            height, width = (height + 1) // 2, (width + 1) // 2
        return height, width

    def _depths(self) -> Any:
        return getattr(self.config, "depths", None)

    def _most_special(self) -> int:
        """The largest number of special tokens: class, distillation and register tokens."""
        return 0 if self._depths() else 2 + (getattr(self.config, "num_register_tokens", 0) or 0)

    @contextlib.contextmanager
    def _refusals(self, expected: str) -> Iterator[None]:
        """Turn what transformers raises into InputError."""
        try:
            yield
        except DAMAGED as error:
            if isinstance(error, InputError):
                raise
            found = (
                "a folder that does not load"
                if Path(self.name).is_dir()
                else "neither a folder nor a model that can be fetched"
            )
            raise InputError(
                f"--model {self.name}: found {found} ({first_sentence(error)}), expected "
                f"{expected} of transformers. Give a local folder that holds config.json, "
                "preprocessor_config.json and the weights, or a hub name, which needs the network"
            ) from error


def _refuse_unreadable(name: str) -> None:
    """Raise InputError if a file in the folder of a network cannot be read. A pipe would block."""
    for file in sorted(Path(name).iterdir()) if Path(name).is_dir() else ():
        why = why_unreadable(file) if file.suffix in FILES_READ else None
        if why:
            raise InputError(
                f"{file}: {why}; expected a file of a vision network: copy it there, or take it "
                "away"
            )


def _plain(value: Any) -> Any:
    """A setting as a JSON value. `size` may be a mapping of its own class."""
    if isinstance(value, (str, bool, float, int)):
        return value if isinstance(value, (str, bool, float)) else int(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in dict(value).items() if item is not None}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the output of transformers."""
    verbosity = transformers.logging.get_verbosity()
    has_bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if has_bars:
            transformers.logging.enable_progress_bar()
