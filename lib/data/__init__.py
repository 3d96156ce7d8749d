"""Data folders: their layout, datasets and loaders, captions, vocabulary, sampling,
the demo data."""
