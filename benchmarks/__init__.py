"""Measurements of time and memory. `python -m benchmarks.step` prints a Markdown row;
benchmarks/results/ holds one file per date and machine."""
