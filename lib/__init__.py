"""HREM's parts, one noun a file; docs/code.md lists them."""
