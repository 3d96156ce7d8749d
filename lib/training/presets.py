"""What `--dataset demo` and `--method` set, unless an option is given explicitly.

Parsing imports this module, so it must not import torch.
"""

from pathlib import Path
from typing import Any

# --dataset demo: two minutes on two CPU cores instead of hours on a GPU
DEMO: dict[str, Any] = dict(
    logger_name="runs/demo_test",
    num_epochs=8,
    warmup=200,
    embed_size=128,
    nhead=4,
    dropout=0.2,
    learning_rate=2e-3,
    lr_schedules=[6],
    workers=0,
    log_step=20,
)

# --method: the model and the losses, never size or schedule (those are DEMO's)
METHODS: dict[str, dict[str, Any]] = {
    "hrem": dict(),  # every default
    "hrem-standalone": dict(interaction="standalone"),
    "vsepp": dict(interaction="none", pooling="mean", base_loss="vse", max_violation=True),
    "gpo": dict(interaction="none", pooling="gpo", base_loss="vse", vse_mean_warmup_epochs=1),
}


def demo_bert(data_path: str) -> str:
    """Where `--dataset demo` has its BERT, unless --bert_path says otherwise."""
    return str(Path(data_path) / "demo_precomp" / "bert")
