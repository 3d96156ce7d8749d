"""Both encoders as one module: what is trained, saved and used at test time (SPEC section 3)."""

# N images, C captions, E embedding

from torch import nn

from lib.encoders import ImageEncoder, RecurrentTextEncoder, TextEncoder


class HREM(nn.Module):
    """The image and the text encoder. At test time nothing else is used: similarity is the dot product.

    reader: what reads captions, a transformers BertModel without pooler, or the nn.Embedding of a vocabulary, which a
    bidirectional GRU goes on from; region_dim: D; embed_size: E; heads: of both fragment transformers.
    """

    def __init__(
        self, reader, region_dim=2048, embed_size=1024, heads=16, dropout=0.1, residual_weight=0.8,
        normalise_images=True, normalise_captions=True, pooling="maxk+relation", mask_padding=False,
    ):  # fmt: skip
        super().__init__()
        shared = dict(dim=embed_size, heads=heads, dropout=dropout, residual_weight=residual_weight, pooling=pooling)
        self.image_encoder = ImageEncoder(region_dim, normalise=normalise_images, mask_padding=mask_padding, **shared)
        read = RecurrentTextEncoder if isinstance(reader, nn.Embedding) else TextEncoder
        self.text_encoder = read(reader, normalise=normalise_captions, **shared)

    def forward(self, batch, least_pieces=None):
        """Encode a `lib.dataset.Batch`; least_pieces: see `TextEncoder`. Returns `Encoded` images and captions."""
        return (
            self.image_encoder(batch.regions, batch.region_lengths),
            self.text_encoder(batch.pieces, batch.piece_lengths, least_pieces),
        )
