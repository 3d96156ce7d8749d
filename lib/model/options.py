"""Values that options of the model can have. Parsing imports this module, so it must not import
torch.
"""

POOLINGS = tuple(
    name + relation for relation in ("+relation", "") for name in ("maxk", "mean", "max", "gpo")
)
TEXT_ENCODERS = ("bert", "bigru")
PRECISIONS = ("fp32", "tf32", "bf16")  # of the encoders in training; evaluation always uses fp32
