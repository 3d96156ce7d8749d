"""Losses and instance relations; the graph over a batch itself is graph_lib.py."""
