"""HREM's parts: seven packages, each of which imports from those before it (docs/code.md).

In a checkout this package is called `lib`; an installation calls it `hrem`.
"""

__version__ = "1.0.0"


def __getattr__(name):
    """`load`, imported on first use, so that importing the package stays quick."""
    if name == "load":
        from .model import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
