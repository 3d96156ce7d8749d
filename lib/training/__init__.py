"""Optimiser, one step, one epoch, the run: its state, its loop, its reporting, its logs."""
