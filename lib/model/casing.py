"""Whether the tokeniser of a BERT keeps capitals and accents: what its files say, or what its
vocabulary shows where they say nothing."""

import json
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from tokenizers import Tokenizer
from tokenizers.normalizers import BertNormalizer

# share of the vocabulary's words; if so many have capitals, or accents, the vocabulary has them
SIGNIFICANT_SHARE = 0.02


def settle(path: Path | str, backend: Tokenizer) -> str:
    """Make a tokeniser keep or remove capitals and accents as its BERT was trained.

    path: folder or hub name. Three sources are read in this order: tokenizer_config.json;
    tokenizer.json, which the tokeniser of transformers does not read; and the vocabulary, some
    words of which could otherwise never occur. Returns the note of `lib.model.bert.tokeniser`.
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
    found = f"{capitals:.1%} of the vocabulary's words have capitals, {accents:.1%} have accents"
    if 0 < capitals < SIGNIFICANT_SHARE or 0 < accents < SIGNIFICANT_SHARE and capitals == 0:
        return (
            f"warning: {path}: it is not certain whether words keep capitals and accents: no file "
            f"says so, and {found}; {_describe_casing(backend)}. If that is wrong, write "
            '{"do_lower_case": false} into tokenizer_config.json'
        )
    return _note(path, backend, f"because no file says otherwise, and {found}", words)


def _note(path, backend, reason, words):
    """The note on a BERT whose treatment of capitals is known, for this reason."""
    if all(backend.normalizer.normalize_str(letter) != letter for letter in "Aé"):
        changed = _share_changed(words, backend.normalizer)
        if changed < SIGNIFICANT_SHARE:
            return ""
        reason += (
            f"; warning: {changed:.0%} of the vocabulary's words can then never occur, it looks "
            "like a cased one"
        )
    elif backend.normalizer.normalize_str("A") == "A" and all(
        word == word.lower() for word in words
    ):
        reason += "; warning: no word of the vocabulary has a capital, it looks like an uncased one"
    return f"{path}: {_describe_casing(backend)}, {reason}"


def _describe_casing(backend):
    """Whether a tokeniser keeps capitals and accents, in words."""
    capitals, accents = (
        "kept" if backend.normalizer.normalize_str(letter) == letter else way
        for letter, way in (("A", "made lower case"), ("é", "removed"))
    )
    return f"capitals are {capitals}, accents {accents}"


def _share_changed(words, normaliser):
    """The share of words that a normaliser changes: after it, no caption contains them."""
    # lower-case ASCII is never changed
    others = [word for word in words if not word.isascii() or word != word.lower()]
    # it puts spaces around CJK characters
    changed = sum(normaliser.normalize_str(word).replace(" ", "") != word for word in others)
    return changed / max(len(words), 1)


def _file_of(path, name):
    """A file of the BERT at `path`, a folder or a hub name that has been read, or None if there
    is no such file."""
    found = Path(path) / name if Path(path).is_dir() else try_to_load_from_cache(str(path), name)
    return Path(found) if isinstance(found, (str, Path)) and Path(found).is_file() else None


def _read_json(file):
    """The object in a JSON file, or {} where there is no file."""
    found = json.loads(file.read_text(encoding="utf-8")) if file else {}
    return found if isinstance(found, dict) else {}
