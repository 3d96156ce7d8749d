"""What `--dataset demo` sets. Parsing imports this module, so it must not import torch."""

from pathlib import Path


def demo_bert(data_path: str) -> str:
    """Where `--dataset demo` has its BERT, unless --bert_path says otherwise."""
    return str(Path(data_path) / "demo_precomp" / "bert")
