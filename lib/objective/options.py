"""Options of the losses, of both transformers and of the graph over a batch.

Parsing imports this module, so it must not import torch.
"""

from ..model.options import POOLINGS
from ..system.options import (
    COUNT_OR_NONE,
    FRACTION,
    NOT_NEGATIVE,
    PROBABILITY_BELOW_ONE,
    SIZE,
    SWITCH,
    number,
)

LOSSES = ("trip", "vse", "infonce")
MOST_LAYERS, MOST_MATCHES = 100, 1000


def add_options(parser):
    """Add the options of the losses, of both transformers and of the instance graph to an argparse
    parser."""
    losses = parser.add_argument_group("losses (docs/method.md, section 5)")
    losses.add_argument(
        "--base_loss",
        choices=LOSSES,
        default="trip",
        help="loss on the embeddings of images and captions",
    )
    losses.add_argument(
        "--gnn_loss",
        choices=LOSSES,
        default="trip",
        help="loss on the embeddings enhanced by the graph",
    )
    losses.add_argument(
        "--longest_distance",
        type=number(float, 0, 2, low_allowed=False),
        help=(
            "trip: negatives at this distance or farther are not sampled "
            "(default: 1.9 for COCO and for folders with testall, else 1.7)"
        ),
    )

    fragments = parser.add_argument_group("fragment-level relations (docs/method.md, section 3)")
    fragments.add_argument(
        "--pooling",
        choices=POOLINGS,
        default="maxk+relation",
        help="pooling of fragments in both encoders; without +relation there is no "
        "fragment-level transformer",
    )
    fragments.add_argument(
        "--mask_padding",
        type=SWITCH,
        default=0,
        help="1: dropped regions are left out of batch norm and of the relations "
        "(published code: 0)",
    )
    fragments.add_argument(
        "--residual_weight",
        type=FRACTION,
        default=0.8,
        help="weight lambda of the pooled fragments; the output of the "
        "fragment-level transformer has weight 1 - lambda",
    )
    fragments.add_argument(
        "--nhead", type=SIZE, default=16, help="number of attention heads of each transformer"
    )
    fragments.add_argument(
        "--dropout",
        type=PROBABILITY_BELOW_ONE,
        default=0.1,
        help="dropout of every transformer except BERT",
    )

    graph = parser.add_argument_group("instance-level relations (docs/method.md, section 4)")
    graph.add_argument(
        "--interaction",
        choices=("fusion", "standalone", "none"),
        default="fusion",
        help="fusion: one transformer over all instances of the batch; standalone: "
        "one per block of the graph; none: no graph, base loss only",
    )
    graph.add_argument(
        "--relation",
        choices=("both", "intra", "inter"),
        default="both",
        help="blocks of the graph in use: both; intra: within a modality only; "
        "inter: between the modalities only",
    )
    graph.add_argument(
        "--connection",
        type=SWITCH,
        default=1,
        help="0: connect all instances of a block, --threshold has no effect",
    )
    graph.add_argument(
        "--relevance",
        type=SWITCH,
        default=1,
        help="0: do not use relevance: connected instances are treated alike and "
        "there is no regulariser",
    )
    graph.add_argument(
        "--distance",
        choices=("l2", "l2sq"),
        default="l2",
        help="distance in the relevance exp(-distance / sigma): l2 as in the "
        "released code, l2sq (squared) as in the paper",
    )
    graph.add_argument(
        "--warmup",
        type=COUNT_OR_NONE,
        default=8000,
        help="number of training steps without the graph at the start",
    )
    graph.add_argument(
        "--num_layers_enc",
        type=number(int, 1, MOST_LAYERS),
        default=1,
        help="number of transformer layers of the graph (standalone: of each block)",
    )
    graph.add_argument(
        "--graph_lr_factor",
        type=NOT_NEGATIVE,
        default=1.0,
        help="factor on the learning rate of the graph's parameters",
    )
    graph.add_argument(
        "--mask_weight",
        type=NOT_NEGATIVE,
        default=1.0,
        help="weight of the relevance in the attention of the graph",
    )
    graph.add_argument(
        "--threshold",
        type=FRACTION,
        default=0.5,
        help="fraction of the batch that each instance is connected to",
    )
    graph.add_argument(
        "--topk",
        type=number(int, 1, MOST_MATCHES),
        default=10,
        help="number K of fragment matches that the relevance MLP reads",
    )
    graph.add_argument(
        "--reg_loss_weight",
        type=NOT_NEGATIVE,
        default=10,
        help="weight of the regulariser of the relevance",
    )
    graph.add_argument(
        "--norm_input", type=SWITCH, default=1, help="1: the graph reads normalised embeddings"
    )
    graph.add_argument(
        "--cross_loss",
        type=SWITCH,
        default=1,
        help="1: add the losses between the original and the enhanced embeddings",
    )
