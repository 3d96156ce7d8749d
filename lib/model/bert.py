"""BERT: read from a local folder or a hub name, with clear refusals,
and run without work on padding."""

# N captions, L pieces of the longest, M packed positions

import json
import pickle
import re
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from tokenizers import Tokenizer
from tokenizers.normalizers import BertNormalizer
from transformers import AutoTokenizer, BertConfig, BertModel

from ..data.captions import PADDING_ID
from ..system.console import one_line
from ..system.errors import InputError, first_sentence
from ..system.files import why_unreadable
from .packing import attention_dtype, key_bias
from .saved_bert import SavedBert

BERT_FIELDS = {  # of a config.json, which tell a BERT that does not say so by model_type
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings", "type_vocab_size", "vocab_size",
}  # fmt: skip
# of ALBERT, ELECTRA, DeBERTa
NON_BERT_FIELDS = {"embedding_size", "inner_group_num", "relative_attention"}
# a share of the vocabulary: as many words with capitals, or accents, are no accident
SIGNIFICANT_SHARE = 0.02
VOCABULARY_FILES = ("vocab.txt", "tokenizer.json")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
FILES_READ = (".json", ".txt", ".safetensors", ".bin", ".jinja")  # of a folder, by transformers
# settings by which a hub's code would compute: not read
CODE_SETTINGS = re.compile("implementation|kernel|auto_map")
DAMAGED = (  # what reading a folder was seen to raise when one of its files is damaged
    OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, EOFError, ImportError,
    AssertionError, IndexError, OverflowError, pickle.UnpicklingError, SafetensorError,
    StrictDataclassError,
)  # fmt: skip


def configuration(path):
    """The configuration of the BERT at `path`: a folder, a hub name or a `SavedBert`.
    Raises InputError if there is none, or it is no BERT."""
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
    """Whether a configuration without model_type, as early files have it,
    has the fields of a BERT and no other's."""
    architectures = settings.get("architectures") or []
    return (
        "model_type" not in settings
        and settings.keys() >= BERT_FIELDS
        and not settings.keys() & NON_BERT_FIELDS
        and isinstance(architectures, list)
        and all(str(name).startswith("Bert") for name in architectures)
    )


def model(path, pretrained=True):
    """The BERT at `path` without its pooler, in float32;
    with random weights unless `pretrained`. Raises InputError."""
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


def tokeniser(path):
    """The fast tokeniser of the BERT at `path`. Raises InputError where there is none.

    Its attribute `note` is a line for the log where words are not lower-cased and stripped of
    accents, as the uncased BERT has them, or where nothing says how they are; otherwise it is
    empty.
    """
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
        found.note = _load(path, lambda: _settle_casing(path, backend))
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


def _settle_casing(path, backend):
    """Make a tokeniser treat capitals and accents as the files of its BERT say,
    or else as its vocabulary shows.

    The order: tokenizer_config.json, tokenizer.json (which the tokeniser of transformers leaves
    unread), words of the vocabulary that could never be met otherwise. Returns the note for
    `tokeniser`.
    """
    settings = _read_json(_file_of(path, "tokenizer_config.json"))
    file = _file_of(path, "tokenizer.json")
    normaliser = Tokenizer.from_file(str(file)).normalizer if file else None
    words = [
        word
        for word in backend.get_vocab(with_added_tokens=False)
        if not (word[0] in "[<" and word[-1] in "]>")
    ]
    if isinstance(settings.get("do_lower_case"), bool):
        return _note(path, backend, "as tokenizer_config.json says", words)
    if normaliser is not None:
        backend.normalizer = normaliser
        return _note(path, backend, "as tokenizer.json says", words)
    capitals = _share_changed(words, BertNormalizer(lowercase=True, strip_accents=False))
    accents = _share_changed(words, BertNormalizer(lowercase=False, strip_accents=True))
    is_cased = capitals >= SIGNIFICANT_SHARE
    # None: as it lower-cases
    by_default = None if is_cased or accents < SIGNIFICANT_SHARE else False
    strips = settings.get("strip_accents", by_default)
    backend.normalizer = BertNormalizer(lowercase=not is_cased, strip_accents=strips)
    found = f"{capitals:.1%} of the vocabulary's words hold capitals, {accents:.1%} accents"
    if 0 < capitals < SIGNIFICANT_SHARE or 0 < accents < SIGNIFICANT_SHARE and capitals == 0:
        return (
            f"warning: {path}: whether words keep capitals and accents cannot be told: no file "
            f"says so, and {found}; "
            f"{_describe_casing(backend)}; if that is wrong, "
            f'write {{"do_lower_case": false}} into '
            "tokenizer_config.json"
        )
    return _note(path, backend, f"for no file says otherwise, and {found}", words)


def _note(path, backend, reason, words):
    """What `tokeniser` has to say of a BERT whose treatment of capitals is known,
    for this reason."""
    if all(backend.normalizer.normalize_str(letter) != letter for letter in "Aé"):
        changed = _share_changed(words, backend.normalizer)
        if changed < SIGNIFICANT_SHARE:
            return ""
        reason += (
            f"; warning: so {changed:.0%} of the vocabulary's words can "
            "never be met, it looks like a cased one"
        )
    elif backend.normalizer.normalize_str("A") == "A" and all(
        word == word.lower() for word in words
    ):
        reason += (
            "; warning: no word of the vocabulary holds a capital, it looks like an uncased one"
        )
    return f"{path}: {_describe_casing(backend)}, {reason}"


def _describe_casing(backend):
    """What a tokeniser makes of capitals and accents, in words."""
    capitals, accents = (
        "kept" if backend.normalizer.normalize_str(letter) == letter else way
        for letter, way in (("A", "made lower case"), ("é", "removed"))
    )
    return f"capitals are {capitals}, accents {accents}"


def _share_changed(words, normaliser):
    """The share of words that a normaliser changes, and so never finds in a caption."""
    # no normaliser changes the rest
    others = [word for word in words if not word.isascii() or word != word.lower()]
    # it sets CJK apart
    changed = sum(normaliser.normalize_str(word).replace(" ", "") != word for word in others)
    return changed / max(len(words), 1)


def _file_of(path, name):
    """A file of the BERT at `path`, a folder or a hub name that has been read;
    None where it has no such file."""
    found = Path(path) / name if _is_folder(path) else try_to_load_from_cache(str(path), name)
    return Path(found) if isinstance(found, (str, Path)) and Path(found).is_file() else None


def _read_json(file):
    """The object in a JSON file, or {} where there is no file."""
    found = json.loads(file.read_text(encoding="utf-8")) if file else {}
    return found if isinstance(found, dict) else {}


def encode_packed(bert, pieces, packing):
    """BERT's last hidden state of the positions that `packing` holds, (M, hidden),
    without work on the others.

    bert: a transformers BertModel; pieces: (N, L) ids; packing: `lib.model.packing.Packing`.
    Padding (id 0) is never a key.
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


def _is_folder(path):
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


def _load(path, load):
    """Run a loader of transformers quietly; turn what it raises for a bad folder or name into
    InputError."""
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
