"""One script a figure: `python -m benchmarks.step` prints a Markdown row;
benchmarks/README.md holds the tables."""
