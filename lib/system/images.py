"""PNG images and data URIs. Pillow is imported when the first image is encoded."""

import base64
import importlib.util
import io

import numpy as np


def can_encode() -> bool:
    """Whether Pillow is installed."""
    return importlib.util.find_spec("PIL") is not None


def to_grey(values: np.ndarray) -> np.ndarray:
    """(rows, columns) numbers as grey levels, black for the lowest and white for the highest:
    uint8 (rows, columns, 1)."""
    low, high = float(values.min()), float(values.max())
    return (255 * (values - low) / (high - low or 1)).round().astype(np.uint8)[..., None]


def encode_png(pixels: np.ndarray) -> bytes:
    """The bytes of a PNG file of uint8 (rows, columns, channels), with 1 or 3 channels."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return file.getvalue()


def data_uri(mime_type: str, content: bytes) -> str:
    """The content of a file as a data URI."""
    return f"data:{mime_type};base64,{base64.b64encode(content).decode()}"
