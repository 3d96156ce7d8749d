"""Terms that are added to the losses of pairs. They compare more than the similarities of pairs.

Equations: docs/method.md, section 5.
"""

# B pairs, E embedding

import torch
import torch.nn.functional as F

OFF_DIAGONAL = 0.0051  # of Barlow Twins, as in AVSE
SHORTEST_COLUMN = 1e-4  # a shorter one is not scaled to unit length: its gradient would be huge


def decorrelation_loss(u: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """The features of images and captions agree one by one, and not with each other.

    Cosines of the columns of u and w, (B, E), over the batch: near 1 for the same feature and near
    0 for two different ones, as in AVSE and Barlow Twins (Zbontar et al., ICML 2021), whose columns
    are also centred. Returns a scalar.
    """
    images, captions = (F.normalize(side, dim=0, eps=SHORTEST_COLUMN) for side in (u, w))
    cosines = images.mT @ captions  # (E, E)
    own = cosines.diagonal()
    others = cosines.square().sum() - own.square().sum()
    return (1 - own).square().sum() + OFF_DIAGONAL * others
