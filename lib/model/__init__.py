"""Both encoders, from pooling to the assembled model, and its checkpoints."""


def __getattr__(name):
    """`from lib.model import load`, as the documentation has it; imported only then,
    for it stands further up."""
    if name == "load":
        from ..results.trained import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
