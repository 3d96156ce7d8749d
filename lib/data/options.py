"""Options that specify the data. Parsing imports this module, so it must not import torch."""

from ..system.options import Group


def add_data_options(group: Group) -> None:
    """Add --data_path and --dataset, which train.py and eval.py share."""
    group.add_argument("--data_path", default="data/", help="folder that contains DATASET_precomp")
    group.add_argument(
        "--dataset",
        default="f30k",
        help="f30k, coco, demo (built in), or the DATASET of any DATASET_precomp folder",
    )
