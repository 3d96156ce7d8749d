"""HREM's parts: seven packages, each of which imports from those before it; docs/code.md lists every file."""
