"""BERT: read from a local folder or a hub name, with clear refusals,
and run without work on padding."""

# N captions, L pieces of the longest, M packed positions

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoTokenizer, BertConfig, BertModel

from ..data.captions import PADDING_ID
from ..system.console import one_line
from ..system.errors import InputError, first_sentence
from ..system.files import why_unreadable
from . import casing, packaged_bert
from .packing import Packing, attention_dtype, key_bias
from .saved_bert import SavedBert

Loaded = TypeVar("Loaded")
Source = Path | str | SavedBert  # of a BERT: a folder, a hub name, or what a checkpoint keeps

BERT_FIELDS = {  # a config.json without model_type that has these describes a BERT
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings", "type_vocab_size", "vocab_size",
}  # fmt: skip
# a config.json that has one of these does not: ALBERT, ELECTRA, DeBERTa
NON_BERT_FIELDS = {"embedding_size", "inner_group_num", "relative_attention"}
VOCABULARY_FILES = ("vocab.txt", "tokenizer.json")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
# kinds of files that transformers reads in a folder
FILES_READ = (".json", ".txt", ".safetensors", ".bin", ".jinja")
# settings that would select code from the hub: they are not read
CODE_SETTINGS = re.compile("implementation|kernel|auto_map")
DAMAGED = (  # exceptions that reading a folder raises if one of its files is damaged
    OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, EOFError, ImportError,
    AssertionError, IndexError, OverflowError, pickle.UnpicklingError, SafetensorError,
    StrictDataclassError,
)  # fmt: skip


def configuration(path: Source) -> BertConfig:
    """The configuration of the BERT at `path`. Raises InputError if there is none, or if it is the
    configuration of another model."""
    path = packaged_bert.locate(path)
    if isinstance(path, SavedBert):
        settings = path.config
    else:
        if _is_folder(path):
            _expect_one_of(path, ("config.json",), "configuration")
        settings = _load(path, lambda: dict(BertConfig.get_config_dict(str(path))[0]))
    if settings.get("model_type") != "bert" and not _is_unnamed_bert(settings):
        raise InputError(
            f"{path}: found a model of type {settings.get('model_type', 'unknown')!r}, expected "
            "'bert'; give --bert_path a BERT folder such as bert-base-uncased"
        )
    positions = settings.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise InputError(
            f"{path}: found a BERT with {positions!r} positions, expected 'absolute'; give "
            "another --bert_path"
        )
    for name in ("hidden_size", "num_attention_heads", "num_hidden_layers"):
        size = settings.get(name, 1)
        if not isinstance(size, int) or size < 1:
            raise InputError(
                f"{path}: found {name} {size!r}, expected 1 or "
                "more; copy or download the folder again"
            )
    chosen = {name: value for name, value in settings.items() if not CODE_SETTINGS.search(name)}
    return _load(path, lambda: BertConfig.from_dict(chosen))


def _is_unnamed_bert(settings):
    """Whether a configuration without model_type, which early files lack, is that of a BERT."""
    architectures = settings.get("architectures") or []
    return (
        "model_type" not in settings
        and settings.keys() >= BERT_FIELDS
        and not settings.keys() & NON_BERT_FIELDS
        and isinstance(architectures, list)
        and all(str(name).startswith("Bert") for name in architectures)
    )


def model(path: Source, pretrained: bool = True) -> BertModel:
    """The BERT at `path` without its pooler, in float32; with random weights unless `pretrained`.
    Raises InputError."""
    path = packaged_bert.locate(path)
    config = configuration(path)
    if not pretrained:
        return _load(path, lambda: BertModel(config, add_pooling_layer=False))
    if _is_folder(path):
        _expect_one_of(path, WEIGHT_FILES, "weights")
    found, report = _load(
        path,
        lambda: BertModel.from_pretrained(
            str(path),
            config=config,
            add_pooling_layer=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        ),
    )
    if report["mismatched_keys"]:
        name, shape, wanted = sorted(report["mismatched_keys"])[0]
        raise InputError(
            f"{path}: the weights hold {name} of shape {tuple(shape)}, expected {tuple(wanted)} "
            "as config.json has it; copy or download the folder again"
        )
    if report["missing_keys"]:
        raise InputError(
            f"{path}: the weights lack {sorted(report['missing_keys'])[0]} and "
            f"{len(report['missing_keys']) - 1} other entries, expected a whole BERT; copy or "
            "download the folder again"
        )
    found = found.float()
    for name, value in found.state_dict().items():
        if not value.isfinite().all():
            raise InputError(
                f"{path}: the weights hold NaN or Inf in {name}, expected finite weights; copy or "
                "download the folder again"
            )
    return found


def tokeniser(path: Source) -> Any:  # lib.data.captions.Tokeniser
    """The fast tokeniser of the BERT at `path`. Raises InputError where there is none.

    Its attribute `note` is a line for the log if capitals or accents are kept, or if it is not
    known whether they should be; otherwise it is empty.
    """
    path = packaged_bert.locate(path)
    config = configuration(path)
    if _is_folder(path):
        _expect_one_of(path, VOCABULARY_FILES, "vocabulary")
    found = _load(path, lambda: _read_tokeniser(path, config))
    backend = getattr(found, "backend_tokenizer", None)
    if backend is None:
        raise _no_fast_tokeniser(path, found)
    entries = backend.get_vocab(with_added_tokens=False)
    special = found.cls_token_id, found.sep_token_id, found.mask_token_id
    if (
        None in special
        or not entries.keys() >= {"[CLS]", "[SEP]", "[MASK]", "[UNK]"}
        or entries.get("[PAD]") != PADDING_ID
    ):
        raise InputError(
            f"{path}: the vocabulary lacks [CLS], [SEP], [MASK] or [UNK], or [PAD] is not its "
            "first entry; expected a BERT vocabulary such as bert-base-uncased's"
        )
    # a repeated entry leaves a number out
    largest = max(len(found), *(number + 1 for number in entries.values()))
    if largest > config.vocab_size:
        raise InputError(
            f"{path}: the vocabulary has {largest} entries, expected at most {config.vocab_size} "
            "as config.json has it; the files are of different models: copy or download the "
            "folder again"
        )
    if None in (
        backend.normalizer,
        backend.pre_tokenizer,
        getattr(backend.model, "unk_token", None),
    ):
        raise _no_fast_tokeniser(path, found)
    if isinstance(path, SavedBert):
        found.note = one_line(path.note)
    else:
        found.note = _load(path, lambda: casing.settle(path, backend))
    return found


def _read_tokeniser(path, config):
    if isinstance(path, SavedBert):
        return path.load_tokeniser()
    return AutoTokenizer.from_pretrained(
        str(path), config=config, use_fast=True, trust_remote_code=False
    )


def _no_fast_tokeniser(path, found):
    return InputError(
        f"{path}: found a {type(found).__name__} that does not cut words as the fast tokeniser of "
        "BERT does (with normalizer, pre_tokenizer and a piece for unknown words), expected a "
        "fast BertTokenizer: give another --bert_path, or --text_encoder bigru"
    )


def encode_packed(bert: BertModel, pieces: torch.Tensor, packing: Packing) -> torch.Tensor:
    """BERT's last hidden state at the positions that `packing` holds, (M, hidden). The other
    positions are not computed.

    bert: without its pooler; pieces: (N, L) ids. Padding (id 0) is never a key.
    """
    config = bert.config
    places = torch.arange(pieces.size(1), device=pieces.device).expand_as(pieces)
    ids, places = packing.pack(pieces)[None], packing.pack(places)[None]
    hidden = bert.embeddings(
        input_ids=ids, position_ids=places, token_type_ids=torch.zeros_like(ids)
    )[0]
    dropout = config.attention_probs_dropout_prob if bert.training else 0.0
    bias = key_bias(pieces != PADDING_ID, attention_dtype(hidden))
    for layer in bert.encoder.layer:
        attention = layer.attention.self
        parts = attention.query, attention.key, attention.value
        projected = F.linear(  # one product instead of three
            hidden,
            torch.cat([part.weight for part in parts]),
            torch.cat([part.bias for part in parts]),
        )
        mixed = packing.attention(projected, bias, config.num_attention_heads, dropout)
        hidden = layer.attention.output(mixed, hidden)
        hidden = layer.output(layer.intermediate(hidden), hidden)
    return hidden


def _is_folder(path: Source) -> bool:
    return not isinstance(path, SavedBert) and Path(path).is_dir()


def _expect_one_of(path, names, what):
    for file in sorted(Path(path).iterdir()):
        why = why_unreadable(file) if file.suffix in FILES_READ else None
        if why:
            raise InputError(
                f"{file}: {why}; expected a file of a BERT folder: copy it there, or take it away"
            )
    found = sorted(file.name for file in Path(path).iterdir())
    if not set(found) & set(names):
        raise InputError(
            f"{path}: a BERT folder without {what}: found {', '.join(found) or 'nothing'}, "
            f"expected {' or '.join(names)}; copy the file there, or give another --bert_path"
        )


def _load(path: Source, load: Callable[[], Loaded]) -> Loaded:
    """Run a loader of transformers without its output. Raises InputError for the exceptions by
    which it reports a bad folder or name."""
    verbosity = transformers.logging.get_verbosity()
    has_bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        return load()
    except Exception as error:
        # tokenizers raises bare Exception
        if type(error) is not Exception and not isinstance(error, DAMAGED):
            raise
        found = (
            "a folder that does not load"
            if _is_folder(path)
            else "damaged settings or a damaged tokeniser"
            if isinstance(path, SavedBert)
            else "neither a folder nor a model that can be fetched"
        )
        raise InputError(
            f"{path}: found {found} ({first_sentence(error)}), expected a BERT: give --bert_path "
            "a local folder holding config.json, the weights and vocab.txt, or a hub name, which "
            "needs the network; --text_encoder bigru trains without a BERT"
        ) from error
    finally:
        transformers.logging.set_verbosity(verbosity)
        if has_bars:
            transformers.logging.enable_progress_bar()
