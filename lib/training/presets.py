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

# of SCAN and NAAF: GRU, linear regions, no augmentation, and only the pair itself is positive
WORD_BY_WORD: dict[str, Any] = dict(
    text_encoder="bigru", region_mlp=0, size_augment=0, word_augment=0, interaction="none",
    base_loss="vse", mask_repeat=0, weight_decay=0.0,
)  # fmt: skip

# --method: the model and the losses
METHODS: dict[str, dict[str, Any]] = {
    "hrem": dict(),  # every default
    "hrem-standalone": dict(interaction="standalone"),
    "hrem-plus": dict(interaction="none", pooling="maxk", base_loss="infonce+vse"),
    "vsepp": dict(interaction="none", pooling="mean", base_loss="vse", max_violation=True),
    "gpo": dict(interaction="none", pooling="gpo", base_loss="vse", vse_mean_warmup_epochs=1),
    "scan": dict(similarity="scan", **WORD_BY_WORD),
    "naaf": dict(similarity="naaf", **WORD_BY_WORD),
    "chan": dict(
        similarity="chan", interaction="none", base_loss="vse", margin=0.05, mask_repeat=0,
    ),
}  # fmt: skip
# the schedules of methods that have their own; DEMO has another one for all
SCHEDULES: dict[str, dict[str, Any]] = {
    "hrem-plus": dict(learning_rate=2e-3),
    "scan": dict(num_epochs=30, learning_rate=2e-4, lr_schedules=[15]),
    "naaf": dict(num_epochs=20, learning_rate=5e-4, lr_schedules=[10]),
    "chan": dict(num_epochs=25, learning_rate=5e-4, lr_schedules=[15]),
}
COCO_SCHEDULES: dict[str, dict[str, Any]] = {
    "scan": dict(num_epochs=20, learning_rate=5e-4, lr_schedules=[10]),
}


def method_defaults(method: str | None, dataset: str | None) -> dict[str, Any]:
    """What `--method` sets for a data set."""
    if method not in METHODS:
        return {}
    schedule = SCHEDULES.get(method, {})
    if dataset and dataset.startswith("coco"):
        schedule = schedule | COCO_SCHEDULES.get(method, {})
    return METHODS[method] | schedule


def demo_bert(data_path: str) -> str:
    """Where `--dataset demo` has its BERT, unless --bert_path says otherwise."""
    return str(Path(data_path) / "demo_precomp" / "bert")
