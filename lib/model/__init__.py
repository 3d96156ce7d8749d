"""Both encoders, from pooling to the assembled model, and its checkpoints."""


def __getattr__(name: str) -> object:
    """Support `from lib.model import load`. It is imported only then, because lib.results is above
    this package."""
    if name == "load":
        from ..results.trained import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
