"""Both encoders as one module: what is trained, saved and used at test time
(docs/method.md, section 3)."""

# R regions, D region feature size, E embedding

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..data import fingerprint
from ..data.vocabulary import word_embeddings
from ..system.distributed import print_line
from ..system.options import from_saved
from . import bert, checkpoint
from .encoders import ImageEncoder, RecurrentTextEncoder, TextEncoder
from .options import ALWAYS_SAVED, ModelOptions
from .saved_bert import SavedBert

PUBLISHED_BERT = "bert-base-uncased"


class HREM(nn.Module):
    """The image and the text encoder. At test time nothing else is used: similarity is the dot
    product.

    reader: what reads captions, a transformers BertModel without pooler, or the nn.Embedding of a
    vocabulary, which a bidirectional GRU goes on from; region_dim: D.
    """

    def __init__(
        self,
        reader: nn.Module,
        region_dim: int = 2048,
        options: ModelOptions = ModelOptions(),  # noqa: B008  it is frozen
    ) -> None:
        super().__init__()
        shared = dict(
            dim=options.embed_size,
            heads=options.nhead,
            dropout=options.dropout,
            residual_weight=options.residual_weight,
            pooling=options.pooling,
        )
        self.image_encoder = ImageEncoder(
            region_dim,
            normalise=not options.no_imgnorm,
            mask_padding=bool(options.mask_padding),
            **shared,
        )
        read = RecurrentTextEncoder if isinstance(reader, nn.Embedding) else TextEncoder
        self.text_encoder = read(reader, normalise=not options.no_txtnorm, **shared)

    def forward(self, batch, least_pieces=None):
        """Encode a `lib.data.batches.Batch`; least_pieces: see `TextEncoder`.
        Returns `Encoded` images and captions."""
        return (
            self.image_encoder(batch.regions, batch.region_lengths),
            self.text_encoder(batch.pieces, batch.piece_lengths, least_pieces),
        )


def build_model(options: Mapping[str, Any], reader: nn.Module, region_dim: int) -> HREM:
    """The model that options describe: those of the command line, or of a checkpoint.
    reader: see `HREM`."""
    return HREM(reader, region_dim, from_saved(ModelOptions, options, ALWAYS_SAVED))


def load_model(path, trained, bert_path, region_dim, device):
    """The model of a `Checkpoint` read from `path`, in evaluation mode.
    Raises InputError where it does not fit. bert_path: of `find_bert`."""
    if trained.vocabulary:
        reader = word_embeddings(trained.vocabulary, trained.options["word_dim"])
    else:
        reader = bert.model(bert_path, pretrained=False)
    model = build_model(trained.options, reader, region_dim)
    checkpoint.load_into(model, trained, path)
    if not trained.vocabulary:
        fingerprint.check_reader(
            path, trained.reader, bert_path, {"settings": fingerprint.bert_settings(reader)}
        )
    return model.to(device).eval()


def load_tokeniser(trained, bert_path):
    """What cuts captions for the model of a `Checkpoint`: its own vocabulary,
    or the tokeniser of its BERT."""
    return trained.vocabulary or bert.tokeniser(bert_path)


def print_casing_note(tokeniser):
    """Print what a tokeniser has to say of capitals and accents, if anything."""
    if tokeniser.note:
        print_line(tokeniser.note)


def find_bert(trained: checkpoint.Checkpoint, bert_path: str | None = None) -> str | SavedBert:
    """The BERT of a `Checkpoint`, for `lib.model.bert`: `bert_path` if given, or what the
    checkpoint keeps, or for older ones where it was in training; published ones do not say."""
    recorded = None if trained.is_published else trained.options.get("bert_path")
    return bert_path or trained.bert or recorded or PUBLISHED_BERT
