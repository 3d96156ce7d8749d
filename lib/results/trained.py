"""Use a trained model from Python.

from lib.model import load
model = load("runs/f30k_test")
model.encode_captions(["two dogs running in the snow"])     # (1, E)
model.encode_images(regions, num_regions)                   # (n, R, D), (n,) -> (n, E)
model.encode_pictures(["photo.jpg"])                        # (1, E), of features by `extract`
"""

# C captions, R regions, D region feature size, E embedding

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch

from ..data import fingerprint
from ..data.captions import Captions, Tokeniser, tokenise
from ..data.dataset import LARGEST_FEATURE, RetrievalDataset, pad_pieces
from ..data.extractor import Extractor, load_extractor
from ..data.picture_files import open_picture
from ..evaluation import encoding
from ..model import checkpoint
from ..model.network import HREM, find_bert, load_model, load_tokeniser, print_casing_note
from ..model.pooling import real_mask
from ..system import devices
from ..system.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

RegionArray: TypeAlias = np.ndarray | torch.Tensor  # (n, R, D)
RegionCounts: TypeAlias = np.ndarray | torch.Tensor | Sequence[int]  # (n,)


def load(path: Path | str, device: str = "auto", bert_path: str | None = None) -> "Trained":
    """Load a trained model from a run folder or a checkpoint file, ours or a published one.

    device: auto, cpu, cuda or cuda:N; bert_path: replaces the BERT that the checkpoint contains or
    names. Raises InputError.
    """
    chosen, file = devices.choose_device(device), checkpoint.find(path)
    trained = checkpoint.load(file)
    reader = find_bert(trained, bert_path)
    model = load_model(file, trained, reader, trained.options.get("img_dim", 2048), chosen)
    tokeniser = load_tokeniser(trained, reader)
    print_casing_note(tokeniser)
    fingerprint.check_reader(
        file, trained.reader, reader, {"tokeniser": fingerprint.of_tokeniser(tokeniser)}
    )
    return Trained(model, tokeniser, chosen, trained.extraction)


class Trained:
    """A trained `HREM` with its tokeniser. It turns captions and region features into embeddings,
    float32 numpy arrays.

    Rows have unit length unless the model was trained with --no_imgnorm or --no_txtnorm. A dot
    product is a similarity.
    """

    def __init__(
        self,
        model: HREM,
        tokeniser: Tokeniser,
        device: torch.device,
        extraction: dict[str, Any] | None = None,
    ) -> None:
        """extraction: the record of the features that the model was trained with, or None."""
        self.model, self.tokeniser, self.device = model, tokeniser, device
        self.extraction = extraction
        self._extractor: Extractor | None = None

    def encode_captions(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings (n, E) of n captions of any length. Raises InputError, also for a model
        without embeddings: see `similarities`."""
        self._expect_embeddings()
        return encoding.encode_captions(self.model, self.tokenised(texts), self.device).numpy()

    def tokenised(self, texts: Sequence[str]) -> "_Captions":
        """The checked and tokenised captions. Raises InputError."""
        given = list(texts) if isinstance(texts, Iterable) and not isinstance(texts, str) else []
        if not given or not all(isinstance(text, str) for text in given):
            raise InputError(
                f"captions: not a list of texts (found {texts!r:.60}, expected a list of at least "
                "one string). Pass a list"
            )
        broken = next(
            (text for text in given if any(0xD800 <= ord(letter) < 0xE000 for letter in text)), None
        )
        if broken is not None:
            raise InputError(
                f"captions: a text is not valid Unicode (found {broken!a:.60}, expected text "
                "without lone surrogates). Decode its bytes again"
            )
        reader = getattr(self.model.text_encoder, "bert", None)
        longest = reader and reader.config.max_position_embeddings
        return _Captions(tokenise(given, self.tokeniser, longest))

    def encode_images(
        self, regions: RegionArray, num_regions: RegionCounts | None = None
    ) -> np.ndarray:
        """Embeddings (n, E) of n images. Raises InputError.

        regions: array or tensor (n, R, D) of finite features; num_regions: (n,) number of true
        regions of each image, the rest is padding (default: all are true).
        """
        self._expect_embeddings()
        images = self._images(regions, num_regions)
        return encoding.encode_images(self.model, images, self.device).numpy()

    def _images(self, regions, num_regions):
        """The checked images. Raises InputError."""
        wanted = self.model.image_encoder.projection.in_features
        shape = tuple(getattr(regions, "shape", ()))
        if len(shape) != 3 or shape[2] != wanted or 0 in shape:
            found = f"an array of shape {shape}" if shape else f"a {type(regions).__name__}"
            raise InputError(
                f"regions: wrong shape (found {found}, expected images x regions x {wanted} "
                "features, at least one of each). Pass the features that the model was trained with"
            )
        counts = np.full(shape[0], shape[1]) if num_regions is None else np.asarray(num_regions)
        if (
            counts.shape != shape[:1]
            or counts.dtype.kind not in "iu"
            or counts.min() < 1
            or counts.max() > shape[1]
        ):
            raise InputError(
                "num_regions: not the number of true regions of each image (found "
                f"{str(num_regions):.60}, expected {shape[0]} whole numbers from 1 to {shape[1]}). "
                "Pass the values of {split}_num_regions.npy, or leave num_regions out"
            )
        if isinstance(regions, torch.Tensor):
            regions = regions.detach().cpu()
            regions = (regions.float() if regions.is_floating_point() else regions).numpy()
        if regions.dtype.kind not in "fiub":
            raise InputError(
                f"regions: wrong type (found values of type {regions.dtype}, expected real "
                "numbers). Convert them to float32"
            )
        return _Images(regions, counts)

    def encode_pictures(self, pictures: Sequence["Path | str | Image"]) -> np.ndarray:
        """Embeddings (n, E) of n pictures: paths, or pictures of Pillow.

        Raises InputError, also if the model was trained with features that `extract` has not made.
        """
        self._expect_embeddings()
        return self.encode_images(self.picture_regions(pictures))

    def picture_regions(self, pictures: Sequence["Path | str | Image"]) -> np.ndarray:
        """Region features (n, R, D) of n pictures, as `extract` makes them. Raises InputError."""
        if isinstance(pictures, (str, Path)) or not len(pictures):
            raise InputError(
                f"pictures: not a list of pictures (found {str(pictures)!r:.60}, expected at least "
                "one path or picture of Pillow). Pass a list"
            )
        if self._extractor is None:
            self._extractor = load_extractor(self._expect_extraction(), self.device)
        size = self._extractor.batch_size
        blocks = [  # so that few pictures are in memory at once
            self._extractor.features([open_picture(one) for one in pictures[start : start + size]])
            for start in range(0, len(pictures), size)
        ]
        return np.concatenate(blocks)

    def _expect_extraction(self):
        """The record of the extraction. Raises InputError if there is none."""
        if self.extraction is None:
            raise InputError(
                "this model cannot encode pictures (found no record of an extraction in its "
                "checkpoint, expected that of `python -m lib.data extract`). Use features of the "
                "kind that it was trained with, or train on a folder made by `extract`"
            )
        return self.extraction

    def similarities(
        self, regions: RegionArray, texts: Sequence[str], num_regions: RegionCounts | None = None
    ) -> np.ndarray:
        """Similarities (n, c) of n images with c captions, for every kind of model. Raises
        InputError. Arguments: as for `encode_images` and `encode_captions`."""
        images, captions = self._images(regions, num_regions), self.tokenised(texts)
        if self.model.similarity is None:
            rows = encoding.encode_images(self.model, images, self.device)
            columns = encoding.encode_captions(self.model, captions, self.device)
            return (rows @ columns.T).numpy()
        return encoding.fragment_scores(self.model, images, captions, self.device)

    def scores_of_text(self, text: str, data: RetrievalDataset) -> np.ndarray:
        """Similarities (N,) of a text with the images of a split, by cross-attention."""
        return encoding.fragment_scores(self.model, data, self.tokenised([text]), self.device)[:, 0]

    def scores_of_image(self, image: int, data: RetrievalDataset) -> np.ndarray:
        """Similarities (C,) of an image of a split with its captions, by cross-attention."""
        regions, lengths = data.image_block(image, image + 1)
        one = _Images(regions.numpy(), lengths.numpy())
        return encoding.fragment_scores(self.model, one, data, self.device)[0]

    def scores_of_regions(self, regions: RegionArray, data: RetrievalDataset) -> np.ndarray:
        """Similarities (C,) of one image, (1, R, D), with the captions of a split, by
        cross-attention."""
        images = self._images(regions, None)
        return encoding.fragment_scores(self.model, images, data, self.device)[0]

    def _expect_embeddings(self):
        """Raise InputError if the model scores pairs by cross-attention."""
        if self.model.similarity is not None:
            raise InputError(
                "this model has no embedding of an image or a caption (found --similarity "
                f"{self.model.similarity.kind}, expected embedding). Use similarities(regions, "
                "texts) instead"
            )


class _Captions(NamedTuple):
    """Captions in the form in which `lib.evaluation.encoding` reads a data set."""

    captions: Captions

    def caption_block(self, which: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        return pad_pieces([self.captions.ids(caption) for caption in which])


class _Images(NamedTuple):
    """Regions (n, R, D), of which num_regions (n,) are true, in the form in which `encoding` reads
    a data set."""

    regions: np.ndarray
    num_regions: np.ndarray

    @property
    def num_images(self) -> int:
        return len(self.regions)

    def image_block(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        lengths = torch.from_numpy(self.num_regions[start:stop].astype(np.int64))
        longest = int(lengths.max())
        with np.errstate(over="ignore"):  # large values are refused below
            block = torch.from_numpy(np.array(self.regions[start:stop, :longest], dtype=np.float32))
        block.masked_fill_(~real_mask(lengths, longest).unsqueeze(2), 0)
        fits = (block.abs() <= LARGEST_FEATURE).flatten(1).all(1)  # comparisons with NaN are false
        if not fits.all():
            image = start + int(fits.logical_not().nonzero()[0, 0])
            raise InputError(
                f"regions: image {image} (counted from 0) is damaged (found NaN, Inf or values "
                f"beyond {LARGEST_FEATURE:.0e}, expected finite features). Extract its features "
                "again"
            )
        return block, lengths
