"""HREM's parts, one noun a file; the README lists them in reading order."""
