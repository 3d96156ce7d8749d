"""BERT: read from a local folder or a hub name, with clear refusals, and run without work on padding."""

# N captions, L pieces of the longest, M packed positions

import pickle
import re
from pathlib import Path

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoTokenizer, BertConfig, BertModel

from lib.captions import PADDING_ID
from lib.errors import InputError, first_sentence
from lib.files import why_unreadable

VOCABULARY_FILES = ("vocab.txt", "tokenizer.json")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
FILES_READ = (".json", ".txt", ".safetensors", ".bin", ".jinja")  # of a folder, by transformers
CHOOSES_CODE = re.compile("implementation|kernel|auto_map")  # settings by which a hub's code would compute: not read
DAMAGED = (  # what reading a folder was seen to raise when one of its files is damaged
    OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, EOFError, ImportError, AssertionError,
    IndexError, OverflowError, pickle.UnpicklingError, SafetensorError, StrictDataclassError,
)  # fmt: skip


def configuration(path):
    """The configuration of the BERT at `path`. Raises InputError if there is none, or it is no BERT."""
    if _is_folder(path):
        _expect_one_of(path, ("config.json",), "configuration")
    settings = _load(path, lambda: dict(BertConfig.get_config_dict(str(path))[0]))
    if settings.get("model_type") != "bert":
        raise InputError(
            f"{path}: found a model of type {settings.get('model_type', 'unknown')!r}, expected 'bert'; give "
            "--bert_path a BERT folder such as bert-base-uncased"
        )
    positions = settings.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise InputError(
            f"{path}: found a BERT with {positions!r} positions, expected 'absolute'; give another --bert_path"
        )
    for name in ("hidden_size", "num_attention_heads", "num_hidden_layers"):
        size = settings.get(name, 1)
        if not isinstance(size, int) or size < 1:
            raise InputError(f"{path}: found {name} {size!r}, expected 1 or more; copy or download the folder again")
    chosen = {name: value for name, value in settings.items() if not CHOOSES_CODE.search(name)}
    return _load(path, lambda: BertConfig.from_dict(chosen))


def model(path, pretrained=True):
    """The BERT at `path` without its pooler, in float32; with random weights unless `pretrained`. Raises InputError."""
    config = configuration(path)
    if not pretrained:
        return _load(path, lambda: BertModel(config, add_pooling_layer=False))
    if _is_folder(path):
        _expect_one_of(path, WEIGHT_FILES, "weights")
    found, report = _load(
        path,
        lambda: BertModel.from_pretrained(
            str(path), config=config, add_pooling_layer=False, output_loading_info=True, ignore_mismatched_sizes=True
        ),
    )
    if report["mismatched_keys"]:
        name, shape, wanted = sorted(report["mismatched_keys"])[0]
        raise InputError(
            f"{path}: the weights hold {name} of shape {tuple(shape)}, expected {tuple(wanted)} as config.json has it; "
            "copy or download the folder again"
        )
    if report["missing_keys"]:
        raise InputError(
            f"{path}: the weights lack {sorted(report['missing_keys'])[0]} and {len(report['missing_keys']) - 1} other "
            "entries, expected a whole BERT; copy or download the folder again"
        )
    found = found.float()
    for name, value in found.state_dict().items():
        if not value.isfinite().all():
            raise InputError(
                f"{path}: the weights hold NaN or Inf in {name}, expected finite weights; copy or download the folder "
                "again"
            )
    return found


def tokeniser(path):
    """The fast tokeniser of the BERT at `path`. Raises InputError where its folder holds no vocabulary."""
    config = configuration(path)
    if _is_folder(path):
        _expect_one_of(path, VOCABULARY_FILES, "vocabulary")
    found = _load(path, lambda: AutoTokenizer.from_pretrained(str(path), use_fast=True, trust_remote_code=False))
    entries = found.backend_tokenizer.get_vocab(with_added_tokens=False)
    special = found.cls_token_id, found.sep_token_id, found.mask_token_id
    if (
        None in special
        or not entries.keys() >= {"[CLS]", "[SEP]", "[MASK]", "[UNK]"}
        or entries.get("[PAD]") != PADDING_ID
    ):
        raise InputError(
            f"{path}: the vocabulary lacks [CLS], [SEP], [MASK] or [UNK], or [PAD] is not its first entry; expected a "
            "BERT vocabulary such as bert-base-uncased's"
        )
    if len(found) > config.vocab_size:
        raise InputError(
            f"{path}: the vocabulary has {len(found)} entries, expected at most {config.vocab_size} as config.json has "
            "it; the files are of different models: copy or download the folder again"
        )
    return found


def encode_packed(bert, pieces, packing):
    """BERT's last hidden state of the positions that `packing` holds, (M, hidden), without work on the others.

    bert: a transformers BertModel; pieces: (N, L) ids; packing: `lib.packing.Packing`. Padding (id 0) is never a key.
    """
    config, is_key = bert.config, pieces != PADDING_ID
    places = torch.arange(pieces.size(1), device=pieces.device).expand_as(pieces)
    ids, places = packing.pack(pieces)[None], packing.pack(places)[None]
    hidden = bert.embeddings(input_ids=ids, position_ids=places, token_type_ids=torch.zeros_like(ids))[0]
    dropout = config.attention_probs_dropout_prob if bert.training else 0.0
    for layer in bert.encoder.layer:
        attention = layer.attention.self
        projected = torch.cat([attention.query(hidden), attention.key(hidden), attention.value(hidden)], dim=1)
        mixed = packing.attention(projected, is_key, config.num_attention_heads, dropout)
        hidden = layer.attention.output(mixed, hidden)
        hidden = layer.output(layer.intermediate(hidden), hidden)
    return hidden


def _is_folder(path):
    return Path(path).is_dir()


def _expect_one_of(path, names, what):
    for file in sorted(Path(path).iterdir()):
        why = why_unreadable(file) if file.suffix in FILES_READ else None
        if why:
            raise InputError(f"{file}: {why}; expected a file of a BERT folder: copy it there, or take it away")
    found = sorted(file.name for file in Path(path).iterdir())
    if not set(found) & set(names):
        raise InputError(
            f"{path}: a BERT folder without {what}: found {', '.join(found) or 'nothing'}, expected "
            f"{' or '.join(names)}; copy the file there, or give another --bert_path"
        )


def _load(path, load):
    """Run a loader of transformers quietly; turn what it raises for a bad folder or name into InputError."""
    verbosity = transformers.logging.get_verbosity()
    has_bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        return load()
    except Exception as error:
        if type(error) is not Exception and not isinstance(error, DAMAGED):  # tokenizers raises bare Exception
            raise
        found = (
            "a folder that does not load" if _is_folder(path) else "neither a folder nor a model that can be fetched"
        )
        raise InputError(
            f"{path}: found {found} ({first_sentence(error)}), expected a BERT: give --bert_path a "
            "local folder holding config.json, the weights and vocab.txt, or a hub name, which needs the network; "
            "--text_encoder bigru trains without a BERT"
        ) from error
    finally:
        transformers.logging.set_verbosity(verbosity)
        if has_bars:
            transformers.logging.enable_progress_bar()
