"""One script a figure: `python -m benchmarks.step` prints a Markdown row. benchmarks/README.md holds what was measured."""
