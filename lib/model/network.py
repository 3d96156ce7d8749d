"""Both encoders as one module: what is trained, saved and used at test time
(docs/method.md, section 3)."""

# R regions, D region feature size, E embedding

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data import fingerprint
from ..data.batches import Batch
from ..data.captions import Tokeniser
from ..data.vocabulary import word_embeddings
from ..system.distributed import print_line
from ..system.options import from_saved
from . import bert, checkpoint
from .encoders import Encoded, ImageEncoder, RecurrentTextEncoder, TextEncoder
from .options import ALWAYS_SAVED, ModelOptions
from .similarity import CrossAttention

PUBLISHED_BERT = "bert-base-uncased"


class HREM(nn.Module):
    """The image and the text encoder. Evaluation uses nothing else: similarity is the dot product
    of embeddings, or `similarity` of the fragments, if it is not None.

    reader: a transformers BertModel without its pooler, or the nn.Embedding of a vocabulary, which
    a bidirectional GRU then reads; region_dim: D.
    """

    def __init__(
        self,
        reader: nn.Module,
        region_dim: int = 2048,
        options: ModelOptions = ModelOptions(),  # noqa: B008  it is frozen
    ) -> None:
        super().__init__()
        shared: dict[str, Any] = dict(
            dim=options.embed_size,
            heads=options.nhead,
            dropout=options.dropout,
            residual_weight=options.residual_weight,
            pooling=options.pooling if options.similarity == "embedding" else None,
        )
        self.image_encoder = ImageEncoder(
            region_dim,
            normalise=not options.no_imgnorm,
            mask_padding=bool(options.mask_padding),
            mlp=bool(options.region_mlp),
            **shared,
        )
        read = RecurrentTextEncoder if isinstance(reader, nn.Embedding) else TextEncoder
        self.text_encoder = read(reader, normalise=not options.no_txtnorm, **shared)
        self.similarity = CrossAttention(options) if options.similarity != "embedding" else None

    def forward(self, batch: Batch, least_pieces: int | None = None) -> tuple[Encoded, Encoded]:
        """Encode a batch. least_pieces: see `TextEncoder`. Returns images and captions."""
        return (
            self.image_encoder(
                batch.regions, batch.region_lengths, batch.views if len(batch.views) else None
            ),
            self.text_encoder(batch.pieces, batch.piece_lengths, least_pieces),
        )


def build_model(options: Mapping[str, Any], reader: nn.Module, region_dim: int) -> HREM:
    """The model that options describe: those of the command line, or of a checkpoint.
    reader: see `HREM`."""
    return HREM(reader, region_dim, from_saved(ModelOptions, options, ALWAYS_SAVED))


def load_model(
    path: Path | str,
    trained: checkpoint.Checkpoint,
    bert_path: bert.Source,
    region_dim: int,
    device: torch.device,
) -> HREM:
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


def load_tokeniser(trained: checkpoint.Checkpoint, bert_path: bert.Source) -> Tokeniser:
    """The tokeniser of captions for the model of a `Checkpoint`: its vocabulary, or the tokeniser
    of its BERT."""
    return trained.vocabulary or bert.tokeniser(bert_path)


def print_casing_note(tokeniser: Tokeniser) -> None:
    """Print the note of a tokeniser on capitals and accents, if it has one."""
    if tokeniser.note:
        print_line(tokeniser.note)


def find_bert(trained: checkpoint.Checkpoint, bert_path: str | None = None) -> bert.Source:
    """The BERT of a `Checkpoint`: `bert_path` if given, else the one that the checkpoint keeps,
    else the path that an older checkpoint records, else that of published checkpoints."""
    recorded = None if trained.is_published else trained.options.get("bert_path")
    return bert_path or trained.bert or recorded or PUBLISHED_BERT
