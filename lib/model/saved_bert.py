"""The configuration and the tokeniser of a BERT, as checkpoints keep them.

With them, a checkpoint can be evaluated and resumed without the folder of its BERT. The weights of
BERT are among those of the model.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from tokenizers import Tokenizer
from transformers import BertConfig, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("cls_token", "sep_token", "mask_token", "pad_token", "unk_token")


class SavedBert(NamedTuple):
    """What `keep` has put into a checkpoint.

    file: the checkpoint, for messages; config: of config.json; tokeniser: JSON of the library
    tokenizers; special_tokens: text of each of SPECIAL_TOKENS; note: of `lib.model.bert.tokeniser`.
    """

    file: str
    config: dict[str, Any]
    tokeniser: str
    special_tokens: dict[str, str]
    note: str

    def __str__(self) -> str:
        return f"the BERT kept in {self.file}"

    def load_tokeniser(self) -> PreTrainedTokenizerFast:
        """The tokeniser that cut the captions in training. Raises what tokenizers raises."""
        backend = Tokenizer.from_str(self.tokeniser)
        return PreTrainedTokenizerFast(tokenizer_object=backend, **self.special_tokens)


def keep(config: BertConfig, tokeniser: Any) -> dict[str, Any]:
    """Plain values for a checkpoint, which `read` reads.
    tokeniser: of `lib.model.bert.tokeniser`."""
    settings = json.loads(config.to_json_string(use_diff=False))
    return dict(
        config={name: value for name, value in settings.items() if not name.startswith("_")},
        tokeniser=tokeniser.backend_tokenizer.to_str(),
        special_tokens={name: str(getattr(tokeniser, name)) for name in SPECIAL_TOKENS},
        note=tokeniser.note,
    )


def read(file: str, found: Any) -> SavedBert | None:
    """Check what `keep` returned; None for older checkpoints, which keep no BERT. Raises
    ValueError or TypeError."""
    if found is None:
        return None
    kinds = dict(config=dict, tokeniser=str, special_tokens=dict, note=str)
    if not isinstance(found, Mapping) or not all(
        isinstance(found.get(name), kind) for name, kind in kinds.items()
    ):
        raise ValueError(f"bert is damaged, expected {', '.join(kinds)}")
    special = found["special_tokens"]
    if special.keys() != {*SPECIAL_TOKENS} or not all(isinstance(x, str) for x in special.values()):
        raise ValueError(f"bert has special_tokens {list(special)!r:.60}, expected text of each")
    json.dumps(found["config"])  # raises TypeError or ValueError on what a config.json cannot hold
    return SavedBert(file, **{name: found[name] for name in kinds})
