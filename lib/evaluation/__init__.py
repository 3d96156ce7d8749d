"""Numbers in, numbers out: encode a split, ranks, R@K, tables, intervals."""
