"""Open a split of a data set with its captions tokenised. The demo data are built on first use."""

from pathlib import Path

import numpy as np

from ..data import demo
from ..data.dataset import RetrievalDataset, data_folder
from ..data.vocabulary import Vocabulary
from ..system.distributed import print_line
from ..system.files import report_write_errors
from . import bert

UNKNOWN_WARNING_SHARE = 0.1  # of the pieces of a split


def open_folder(data_path: Path | str, dataset: str) -> Path:
    """The folder of a data set. The demo data are built on first use. Raises InputError."""
    demo_folder = Path(data_path) / "demo_precomp"
    if dataset == "demo" and not demo_folder.exists():
        print_line(f"building the demo data in {demo_folder}")
        with report_write_errors(demo_folder):
            demo.build_once(demo_folder)
    return data_folder(data_path, dataset)


def load_split(
    data_path: Path | str,
    dataset: str,
    split: str,
    bert_path: bert.Source,
    vocabulary: Vocabulary | None = None,
) -> RetrievalDataset:
    """A split, with its captions tokenised for the BERT at `bert_path`, or into words of
    `vocabulary`. Raises InputError."""
    folder = open_folder(data_path, dataset)
    longest = None if vocabulary else bert.configuration(bert_path).max_position_embeddings
    tokeniser = vocabulary or bert.tokeniser(bert_path)
    found = RetrievalDataset(folder, split, tokeniser, longest)
    for note in found.notes:
        print_line(note)
    if found.blank_lines:
        numbers = ", ".join(map(str, found.blank_lines[:10]))
        more = len(found.blank_lines) - 10
        print_line(
            f"warning: {folder / split}_caps.txt: {len(found.blank_lines)} blank captions are "
            "kept, because every line counts (lines "
            f"{numbers}{f' and {more} more' if more > 0 else ''})"
        )
    unknown = tokeniser.backend_tokenizer.token_to_id(tokeniser.backend_tokenizer.model.unk_token)
    share = np.mean(found.captions.pieces == unknown) if len(found.captions.pieces) else 0
    if share > UNKNOWN_WARNING_SHARE:
        print_line(
            f"warning: {split}: {share:.0%} of the words or word pieces of the captions are not in "
            "the vocabulary. Give --bert_path a BERT of their language or domain, or with "
            "--text_encoder bigru a smaller --min_word_count"
        )
    if found.captions.num_shortened:
        print_line(
            f"warning: {split}: {found.captions.num_shortened} "
            f"captions were cut to the {longest} positions of BERT"
        )
    return found
