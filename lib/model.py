"""Both encoders as one module: what is trained, saved and used at test time (docs/method.md, section 3).

from lib.model import load
model = load("runs/f30k_test")
model.encode_captions(["two dogs running in the snow"])     # (1, E)
model.encode_images(regions, num_regions)                   # (n, R, D), (n,) -> (n, E)
"""

# N images, C captions, R regions, D region feature size, E embedding

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from lib import bert, checkpoint, engine, fingerprint
from lib.captions import Captions, tokenise
from lib.dataset import LARGEST_FEATURE, pad_pieces
from lib.encoders import ImageEncoder, RecurrentTextEncoder, TextEncoder
from lib.errors import InputError
from lib.logs import print_line
from lib.pooling import length_mask
from lib.vocabulary import word_embeddings

PUBLISHED_BERT = "bert-base-uncased"


class HREM(nn.Module):
    """The image and the text encoder. At test time nothing else is used: similarity is the dot product.

    reader: what reads captions, a transformers BertModel without pooler, or the nn.Embedding of a vocabulary, which a
    bidirectional GRU goes on from; region_dim: D; embed_size: E; heads: of both fragment transformers.
    """

    def __init__(
        self, reader, region_dim=2048, embed_size=1024, heads=16, dropout=0.1, residual_weight=0.8,
        normalise_images=True, normalise_captions=True, pooling="maxk+relation", mask_padding=False,
    ):  # fmt: skip
        super().__init__()
        shared = dict(dim=embed_size, heads=heads, dropout=dropout, residual_weight=residual_weight, pooling=pooling)
        self.image_encoder = ImageEncoder(region_dim, normalise=normalise_images, mask_padding=mask_padding, **shared)
        read = RecurrentTextEncoder if isinstance(reader, nn.Embedding) else TextEncoder
        self.text_encoder = read(reader, normalise=normalise_captions, **shared)

    def forward(self, batch, least_pieces=None):
        """Encode a `lib.dataset.Batch`; least_pieces: see `TextEncoder`. Returns `Encoded` images and captions."""
        return (
            self.image_encoder(batch.regions, batch.region_lengths),
            self.text_encoder(batch.pieces, batch.piece_lengths, least_pieces),
        )


def build_model(options, reader, region_dim):
    """The model that a dict of options describes, ours or the published ones; reader: see `HREM`."""
    return HREM(
        reader,
        region_dim=region_dim,
        embed_size=options["embed_size"],
        heads=options["nhead"],
        dropout=options["dropout"],
        residual_weight=options["residual_weight"],
        normalise_images=not options["no_imgnorm"],
        normalise_captions=not options["no_txtnorm"],
        pooling=options["pooling"],
        mask_padding=bool(options["mask_padding"]),
    )


def load_model(path, trained, bert_path, region_dim, device):
    """The model of a `Checkpoint` read from `path`, in evaluation mode. Raises InputError where it does not fit."""
    if trained.vocabulary:
        reader = word_embeddings(trained.vocabulary, trained.options["word_dim"])
    else:
        reader = bert.model(bert_path, pretrained=False)
    model = build_model(trained.options, reader, region_dim)
    checkpoint.load_into(model, trained, path)
    if not trained.vocabulary:
        fingerprint.check_reader(path, trained.reader, bert_path, {"settings": fingerprint.bert_settings(reader)})
    return model.to(device).eval()


def tokeniser_of(trained, bert_path):
    """What cuts captions for the model of a `Checkpoint`: its own vocabulary, or the tokeniser of its BERT."""
    return trained.vocabulary or bert.tokeniser(bert_path)


def tell_casing(tokeniser):
    """Print what a tokeniser has to say of capitals and accents, if anything."""
    if tokeniser.note:
        print_line(tokeniser.note)


def bert_of(trained, bert_path=None):
    """The BERT of a `Checkpoint`: `bert_path` if given, or what it was trained with; published ones do not say."""
    return bert_path or (PUBLISHED_BERT if trained.is_published else trained.options.get("bert_path", PUBLISHED_BERT))


def load(path, device="auto", bert_path=None):
    """A trained model from a run folder or a checkpoint file, ours or a published one. Returns `Trained`.

    device: auto, cpu, cuda or cuda:N; bert_path: if not where the model was trained with it. Raises InputError.
    """
    device, path = engine.choose_device(device), checkpoint.find(path)
    trained = checkpoint.load(path)
    bert_path = bert_of(trained, bert_path)
    model = load_model(path, trained, bert_path, trained.options.get("img_dim", 2048), device)
    tokeniser = tokeniser_of(trained, bert_path)
    tell_casing(tokeniser)
    fingerprint.check_reader(path, trained.reader, bert_path, {"tokeniser": fingerprint.of_tokeniser(tokeniser)})
    return Trained(model, tokeniser, device)


class Trained:
    """A trained `HREM` with its tokeniser: captions and region features in, embeddings out, as float32 numpy arrays.

    Rows have unit length (unless trained with --no_imgnorm or --no_txtnorm), and a dot product is a similarity.
    """

    def __init__(self, model, tokeniser, device):
        self.model, self.tokeniser, self.device = model, tokeniser, device

    def encode_captions(self, texts):
        """Embeddings (n, E) of n captions, a list of strings of any length. Raises InputError."""
        given = list(texts) if isinstance(texts, Iterable) and not isinstance(texts, str) else []
        if not given or not all(isinstance(text, str) for text in given):
            raise InputError(f"captions: found {texts!r:.60}, expected a list of at least one string")
        broken = next((text for text in given if any(0xD800 <= ord(letter) < 0xE000 for letter in text)), None)
        if broken is not None:
            raise InputError(f"captions: found {broken!a:.60}, expected text without half characters (lone surrogates)")
        reader = getattr(self.model.text_encoder, "bert", None)
        longest = reader and reader.config.max_position_embeddings
        captions = _Captions(tokenise(given, self.tokeniser, longest))
        return engine.encode_captions(self.model, captions, self.device).numpy()

    def encode_images(self, regions, num_regions=None):
        """Embeddings (n, E) of n images: an array or tensor (n, R, D) of finite region features. Raises InputError.

        num_regions: (n,), how many regions of each image are true, the others being padding; without it all are.
        """
        wanted = self.model.image_encoder.projection.in_features
        shape = tuple(getattr(regions, "shape", ()))
        if len(shape) != 3 or shape[2] != wanted or 0 in shape:
            found = f"an array of shape {shape}" if shape else f"{type(regions).__name__}"
            raise InputError(f"regions: found {found}, expected images x regions x {wanted} features, at least one")
        counts = np.full(shape[0], shape[1]) if num_regions is None else np.asarray(num_regions)
        if counts.shape != shape[:1] or counts.dtype.kind not in "iu" or counts.min() < 1 or counts.max() > shape[1]:
            raise InputError(
                f"num_regions: found {str(num_regions):.60}, expected {shape[0]} whole numbers from 1 to {shape[1]}, "
                "how many regions of each image are true: those of {split}_num_regions.npy, or leave it out"
            )
        if isinstance(regions, torch.Tensor):
            regions = regions.detach().cpu()
            regions = (regions.float() if regions.is_floating_point() else regions).numpy()
        if regions.dtype.kind not in "fiub":
            raise InputError(f"regions: found values of type {regions.dtype}, expected real numbers")
        return engine.encode_images(self.model, _Images(regions, counts), self.device).numpy()


class _Captions(NamedTuple):
    """Captions as `lib.engine` reads them from a data set."""

    captions: Captions

    def caption_block(self, which):
        return pad_pieces([self.captions.ids(caption) for caption in which])


class _Images(NamedTuple):
    """Regions (n, R, D), of which num_regions (n,) are true, as `lib.engine` reads them from a data set."""

    regions: np.ndarray
    num_regions: np.ndarray

    @property
    def num_images(self):
        return len(self.regions)

    def image_block(self, start, stop):
        lengths = torch.from_numpy(self.num_regions[start:stop].astype(np.int64))
        longest = int(lengths.max())
        with np.errstate(over="ignore"):  # refused below
            block = torch.from_numpy(np.array(self.regions[start:stop, :longest], dtype=np.float32))
        block.masked_fill_(~length_mask(lengths, longest).unsqueeze(2), 0)
        fits = (block.abs() <= LARGEST_FEATURE).flatten(1).all(1)  # no comparison with NaN is true
        if not fits.all():
            image = start + int(fits.logical_not().nonzero()[0, 0])
            raise InputError(
                f"regions: image {image} (from 0) holds NaN, Inf or values beyond {LARGEST_FEATURE:.0e}, expected "
                "finite features"
            )
        return block, lengths
