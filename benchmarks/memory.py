"""Memory of the training objective against the batch size, counted without a GPU or any data: the
tensors that live at once when it runs forward and backward on the meta device.

What PyTorch's own kernels allocate while they run, such as the workspace of a matrix product, is
not seen. Blocks are those of a GPU.
"""

import contextlib
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import common
from graph_lib import Objective
from lib.model.encoders import Encoded
from lib.model.matches import BLOCKS
from lib.model.options import ModelOptions
from lib.model.pair_scores import SCORE_BLOCKS
from lib.model.similarity import CrossAttention
from lib.objective.options import ObjectiveOptions
from lib.objective.relation import CrossModalRelation

HEADER = (
    "| part | batch | peak, MB | in B x B matrices | largest tensor, MB |\n|---|---|---|---|---|"
)


class Sizes(NamedTuple):
    """Pairs of a batch, regions of an image, and word pieces of the longest caption."""

    batch: int
    regions: int = common.REGIONS
    pieces: int = 32


class LiveMemory(TorchDispatchMode):
    """Bytes of the tensors that live inside: peak at once, and largest of one tensor. Tensors made
    outside do not count."""

    def __init__(self):
        super().__init__()
        self.peak = self.largest = 0
        self.live = {}  # storage -> (its weak reference, bytes)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        for tensor in _tensors((args, kwargs)):
            self.meet(tensor.untyped_storage(), is_new=False)
        found = operation(*args, **(kwargs or {}))
        for tensor in _tensors(found):
            self.meet(tensor.untyped_storage(), is_new=True)
        return found

    def meet(self, storage, is_new):
        """Note a storage; one that is met first as an argument was made outside."""
        if storage._cdata in self.live:
            return
        size = storage.nbytes() if is_new else 0
        self.live = {key: held for key, held in self.live.items() if not held[0].expired()}
        self.live[storage._cdata] = StorageWeakRef(storage), size
        self.largest = max(self.largest, size)
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))


def _tensors(values):
    return [each for each in tree_leaves(values) if isinstance(each, torch.Tensor)]


def memory_efficient_attention(query, key, value, attn_mask, dropout_p=0.0, is_causal=False):
    """The kernel that a GPU takes for attention with a bias that has a gradient."""
    bias = attn_mask.expand(*query.shape[:3], key.size(2))
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, True, dropout_p
    )[0]


@contextlib.contextmanager
def like_a_gpu():
    """Blocks and attention on the meta device are those of a GPU; it has no autocast."""
    with (
        mock.patch.dict(BLOCKS, meta=BLOCKS["cuda"]),
        mock.patch.dict(SCORE_BLOCKS, meta=SCORE_BLOCKS["cuda"]),
        mock.patch.object(F, "scaled_dot_product_attention", memory_efficient_attention),
        mock.patch.object(torch, "autocast", lambda *_, **__: contextlib.nullcontext()),
    ):
        yield


def encoded(sizes):
    """Images and captions as the encoders return them, on the meta device."""
    lengths = common.caption_lengths(sizes.batch, np.random.default_rng(0))
    lengths = torch.from_numpy(-np.sort(-lengths.clip(max=sizes.pieces)))
    lengths[0] = sizes.pieces
    sides = []
    for real in (torch.full((sizes.batch,), sizes.regions), lengths):
        shape = sizes.batch, int(real[0]), common.EMBED_SIZE
        vectors = torch.empty(sizes.batch, common.EMBED_SIZE, device="meta").requires_grad_()
        sides.append(Encoded(vectors, vectors, torch.empty(shape, device="meta"), real))
    return sides


def objective(**options):
    """A part: forward and backward of the objective of these options."""

    def prepare(sizes):
        module = Objective(ModelOptions(), ObjectiveOptions(**options)).to("meta").train()
        inputs = *encoded(sizes), torch.arange(sizes.batch)
        return lambda: module(*inputs, use_graph=True, hardest=True).total.backward()

    return prepare


def relations(sizes):
    """A part: forward and backward of the cross-modal relations."""
    module = CrossModalRelation(topk=10).to("meta")
    images, captions = encoded(sizes)

    def run():
        i2t, t2i = module(images.fragments, captions.fragments, captions.lengths)
        (i2t.relevance.sum() + t2i.relevance.sum()).backward()

    return run


def scores(**options):
    """A part: forward and backward of a matrix of cross-attention scores."""

    def prepare(sizes):
        module = CrossAttention(ModelOptions(**options)).to("meta").train()
        images, captions = (
            side._replace(fragments=side.fragments.requires_grad_()) for side in encoded(sizes)
        )
        return lambda: module(images, captions).sum().backward()

    return prepare


def losses(name):
    """A part: a loss alone."""
    return objective(interaction="none", base_loss=name)


PARTS = {
    "fusion, trip": objective(),
    "fusion, vse": objective(base_loss="vse", gnn_loss="vse"),
    "fusion, infonce": objective(base_loss="infonce", gnn_loss="infonce"),
    "fusion, squared distance": objective(distance="l2sq"),
    "standalone, trip": objective(interaction="standalone"),
    "intra-modal, trip": objective(relation="intra"),
    "relations": relations,
    "trip": losses("trip"),
    "vse": losses("vse"),
    "infonce": losses("infonce"),
    "infonce+vse": losses("infonce+vse"),
    "scan t2i": scores(similarity="scan"),
    "scan i2t": scores(similarity="scan", cross_attention="i2t"),
    "naaf": scores(similarity="naaf"),
    "chan": scores(similarity="chan"),
}  # fmt: skip


def memory(part, sizes):
    """`LiveMemory` of a part, by its name in PARTS."""
    run = PARTS[part](sizes)
    with like_a_gpu(), LiveMemory() as found:
        run()
    return found


def main():
    options = common.arguments(
        __doc__, parts=[*PARTS], batch_size=[128, 256, 512, 1024, 2048, 4096]
    )
    print(HEADER)
    for part in options.parts:
        for batch_size in options.batch_size:
            found = memory(part, Sizes(batch_size))
            matrices = found.peak / (4 * batch_size**2)
            common.print_row(
                part, batch_size, f"{found.peak / 1e6:.0f}", f"{matrices:.1f}",
                f"{found.largest / 1e6:.0f}",
            )  # fmt: skip


if __name__ == "__main__":
    main()
