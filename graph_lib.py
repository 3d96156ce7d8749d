"""The graph over a batch: interaction of its 2B instances, and the training objective.

Equations: docs/method.md, sections 4 and 5.

The graph exists only in training; evaluation never imports this file.
"""

# B pairs, E embedding

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from lib.data.conventions import COCO_LONGEST_DISTANCE, LONGEST_DISTANCE
from lib.data.dataset import RetrievalDataset
from lib.model.encoders import Encoded
from lib.model.fragment import after_attention, transformer_layer
from lib.model.network import HREM
from lib.model.options import ModelOptions
from lib.objective.auxiliary import FrozenFeatures, SoftLabels, decorrelation_loss
from lib.objective.losses import (
    InfoNCE,
    find_positives,
    hinge_loss,
    similarity_matrices,
    triplet_loss,
    worst_views,
)
from lib.objective.options import ObjectiveOptions
from lib.objective.relation import InstanceRelations, Relation, Relations, regulariser, whole_graph


class Loss(NamedTuple):
    """The objective's value and its terms by name, all scalars with gradient.

    connected: the fraction of the graph that is connected, a scalar; None without a graph.
    """

    total: torch.Tensor
    terms: dict[str, torch.Tensor]
    connected: torch.Tensor | None = None


def transformer_layers(dim: int, heads: int, dropout: float, count: int) -> nn.ModuleList:
    """A stack of the paper's transformer layers."""
    return nn.ModuleList(transformer_layer(dim, heads, dropout) for _ in range(count))


def attention_bias(relation: Relation, mask_weight: float) -> torch.Tensor:
    """The bias that a block adds to the attention logits: mask_weight * relevance where connected,
    -inf elsewhere; a soft connection adds its logarithm."""
    is_connected = relation.connection > 0
    bias = mask_weight * relation.relevance
    if relation.connection.is_floating_point():
        # log(1) where not connected: the gradient of log(0) would be NaN
        bias = bias + relation.connection.masked_fill(~is_connected, 1).log()
    return bias.masked_fill(~is_connected, -torch.inf)


def attend(
    layer: nn.TransformerEncoderLayer,
    nodes: torch.Tensor,
    others: torch.Tensor,
    bias: torch.Tensor,
) -> torch.Tensor:
    """One transformer layer in which a sequence of nodes attends to itself or to another.

    nodes: (1, n, E); others: (1, m, E); bias: (n, m). Returns (1, n, E).
    """
    attended = layer.self_attn(nodes, others, others, attn_mask=bias, need_weights=False)[0]
    return after_attention(layer, nodes, attended)


class Fusion(nn.Module):
    """Passes the 2B instances of a batch through a transformer with the relations as attention
    bias (section 4)."""

    def __init__(
        self,
        dim: int,
        heads: int,
        dropout: float = 0.1,
        layers: int = 1,
        mask_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.mask_weight = mask_weight
        self.layers = transformer_layers(dim, heads, dropout, layers)

    def attention_bias(self, relations: Relations) -> torch.Tensor:
        """The bias of the whole graph, (2B, 2B), in blocks [[i2i, i2t], [t2i, t2t]]."""
        graph = Relation(*(whole_graph(*blocks) for blocks in zip(*relations)))
        return attention_bias(graph, self.mask_weight)

    def forward(
        self,
        image_vectors: torch.Tensor,
        caption_vectors: torch.Tensor,
        relations: Relations,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """image_vectors, caption_vectors: (B, E). Returns the enhanced images and
        captions, L2-normalised."""
        # (1, 2B, E): one sequence
        instances = torch.cat([image_vectors, caption_vectors]).unsqueeze(0)
        bias = self.attention_bias(relations)
        for layer in self.layers:
            instances = attend(layer, instances, instances, bias)
        enhanced = F.normalize(instances.squeeze(0), dim=-1)
        return enhanced[: len(image_vectors)], enhanced[len(image_vectors) :]


class Standalone(nn.Module):
    """Each modality attends to the other and then to itself; each block of the graph has its own
    layers.

    The paper's other interaction. With relation "inter" or "intra" there is only one of the two
    stages.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        dropout: float = 0.1,
        layers: int = 1,
        mask_weight: float = 1.0,
        relation: str = "both",
    ) -> None:
        super().__init__()
        self.mask_weight = mask_weight
        inter, intra = layers * (relation != "intra"), layers * (relation != "inter")
        self.i2t, self.t2i = (transformer_layers(dim, heads, dropout, inter) for _ in range(2))
        self.i2i, self.t2t = (transformer_layers(dim, heads, dropout, intra) for _ in range(2))

    def forward(
        self,
        image_vectors: torch.Tensor,
        caption_vectors: torch.Tensor,
        relations: Relations,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """image_vectors, caption_vectors: (B, E). Returns the enhanced images and
        captions, L2-normalised."""
        # (1, B, E) each
        images, captions = image_vectors.unsqueeze(0), caption_vectors.unsqueeze(0)
        bias = Relations(*(attention_bias(block, self.mask_weight) for block in relations))
        for image_layer, caption_layer in zip(self.i2t, self.t2i):
            images, captions = (
                attend(image_layer, images, captions, bias.i2t),
                attend(caption_layer, captions, images, bias.t2i),
            )
        for image_layer, caption_layer in zip(self.i2i, self.t2t):
            images = attend(image_layer, images, images, bias.i2i)
            captions = attend(caption_layer, captions, captions, bias.t2t)
        return F.normalize(images.squeeze(0), dim=-1), F.normalize(captions.squeeze(0), dim=-1)


class Objective(nn.Module):
    """The training objective: the base loss and, after the warm-up, the losses over the instance
    graph (section 4).

    total = base(u, w) + [g(u, w') + g(u', w)] + g(u', w') + reg_loss_weight * reg

    Options add the terms of section 5 that are no losses of pairs.

    Modules that the options make unnecessary are not created: there is no graph with interaction
    "none", and no regulariser without a learnt relevance between the modalities.
    """

    def __init__(
        self,
        model: ModelOptions = ModelOptions(),  # noqa: B008  it is frozen
        options: ObjectiveOptions = ObjectiveOptions(),  # noqa: B008
        words: torch.Tensor | None = None,
    ) -> None:
        """words: see `SoftLabels`."""
        super().__init__()
        self.options = options
        has_graph = options.interaction != "none"
        used = [options.base_loss, options.gnn_loss] if has_graph else [options.base_loss]
        if any(name.startswith("infonce") for name in used):
            self.infonce = InfoNCE(options.temperature)  # one temperature for all of its terms
        self.soft_labels = SoftLabels(words) if options.soft_labels else None
        self.pieces_read = 0  # pieces of each caption that the relations read, including padding
        if not has_graph:
            return
        use_relevance = bool(options.relevance) and (
            options.mask_weight > 0 or options.reg_loss_weight > 0
        )
        self.has_regulariser = (
            use_relevance and options.relation != "intra" and options.reg_loss_weight > 0
        )
        self.relations = InstanceRelations(
            options.topk,
            options.threshold,
            options.relation,
            use_relevance,
            bool(options.connection),
            options.distance,
            bool(model.mask_padding),
        )
        if self.relations.reads_fragments:
            self.pieces_read = options.topk
        shared: dict[str, Any] = dict(
            dim=model.embed_size,
            heads=model.nhead,
            dropout=model.dropout,
            layers=options.num_layers_enc,
            mask_weight=options.mask_weight,
        )
        if options.interaction == "fusion":
            self.fusion = Fusion(**shared)
        else:
            self.standalone = Standalone(relation=options.relation, **shared)

    def forward(
        self,
        images: Encoded,
        captions: Encoded,
        image_ids: torch.Tensor,
        use_graph: bool,
        hardest: bool = False,
        generator: torch.Generator | None = None,
        scores: torch.Tensor | None = None,
        frozen: FrozenFeatures | None = None,
    ) -> Loss:
        """images, captions: `Encoded`, B each; image_ids: (B,) on the CPU.

        use_graph: whether the warm-up is over; hardest: whether `vse` uses --negatives, not all;
        scores: (B, B) similarities that are not the dot products of embeddings; frozen: of the
        batch, for `SoftLabels`.
        """
        options = self.options
        u, w = images.embedding, captions.embedding
        device = images.fragments.device if u is None else u.device
        positives = find_positives(image_ids, bool(options.mask_repeat), device)

        def losses(name, similarities, for_captions=None):  # (T, B, B) to (T,)
            if name == "trip":
                longest = options.longest_distance or LONGEST_DISTANCE
                return triplet_loss(similarities, positives, options.margin, longest, generator)
            if name == "infonce":
                found = [self.infonce(each, positives, for_captions) for each in similarities]
                return torch.stack(found)
            if name == "infonce+vse":  # the mean of the hinges: vse is a sum over 2B anchors
                weight = options.vse_weight / (2 * similarities.size(-1))
                contrast = losses("infonce", similarities, for_captions)
                return contrast + weight * losses("vse", similarities, for_captions)
            negatives = options.negatives if hardest else "all"
            return hinge_loss(similarities, positives, options.margin, negatives, for_captions)

        views = [u] if images.second_view is None else [u, images.second_view]
        matrices = similarity_matrices([(v, w) for v in views]) if scores is None else scores[None]
        worst = worst_views(matrices) if len(views) == 2 else None
        base, *second = losses(options.base_loss, matrices, worst)
        terms, connected = {"base": (base + second[0]) / 2 if second else base}, None
        terms |= self.extra_terms(u, w, matrices[0], frozen)
        if use_graph and options.interaction != "none":
            relations = self.relations(images, captions)
            connected = self.relations.connected_share(relations)
            enhanced_u, enhanced_w = self.enhance(images, captions, relations)
            sides = [(u, enhanced_w), (enhanced_u, w)] if options.cross_loss else []
            sides.append((enhanced_u, enhanced_w))
            *cross, graph = losses(options.gnn_loss, similarity_matrices(sides))
            if cross:
                terms["cross"] = cross[0] + cross[1]
            terms["graph"] = graph
            if self.has_regulariser:
                terms["regulariser"] = options.reg_loss_weight * regulariser(
                    relations, u, w, options.distance
                )
        return Loss(sum(terms.values()), terms, connected)

    def extra_terms(
        self,
        u: torch.Tensor | None,
        w: torch.Tensor | None,
        similarities: torch.Tensor,
        frozen: FrozenFeatures | None,
    ) -> dict[str, torch.Tensor]:
        """The terms of section 5 that are no losses of pairs, by name. similarities: (B, B)."""
        options, terms = self.options, {}
        if options.decorrelation:
            terms["decorrelation"] = options.decorrelation * decorrelation_loss(u, w)
        if self.soft_labels:
            terms["soft_labels"] = options.soft_labels * self.soft_labels(similarities, frozen)
        return terms

    def enhance(
        self, images: Encoded, captions: Encoded, relations: Relations
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The enhanced embeddings u', w' of a batch, (B, E) each."""
        interact = self.fusion if self.options.interaction == "fusion" else self.standalone
        field = "embedding" if self.options.norm_input else "unnormalised"
        return interact(getattr(images, field), getattr(captions, field), relations)


@torch.no_grad()
def relation_matrices(
    model: HREM,
    objective: Objective,
    split: RetrievalDataset,
    num_pairs: int,
    device: torch.device,
) -> Relation:
    """The graph over the first `num_pairs` images of a split, each with its first caption, as one
    batch.

    Both modules are left in evaluation mode. Returns matrices (2n, 2n) on the CPU, n being
    `num_pairs` or the number of images: images, then captions, in the order of the file.
    """
    model.eval()
    objective.eval()
    num_pairs = min(num_pairs, split.num_images)
    captions = split.first_captions[:num_pairs]
    # longest first, for the text encoders
    order = np.argsort(-split.captions.lengths[captions], kind="stable")
    regions, region_lengths = split.image_block(0, num_pairs)
    pieces, piece_lengths = split.caption_block(captions[order])
    relations = objective.relations(
        model.image_encoder(regions.to(device), region_lengths),
        model.text_encoder(pieces.to(device), piece_lengths, objective.pieces_read),
    )
    in_file = torch.from_numpy(
        np.concatenate([np.arange(num_pairs), num_pairs + np.argsort(order)])
    )
    return Relation(
        *(whole_graph(*blocks).cpu()[in_file][:, in_file] for blocks in zip(*relations))
    )


def longest_distance(dataset: str) -> float:
    """The distance from which negatives are not sampled, by the name of a data set
    (docs/method.md, section 5)."""
    return COCO_LONGEST_DISTANCE if dataset.startswith("coco") else LONGEST_DISTANCE
