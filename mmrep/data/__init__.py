"""Training data: order, draws, shards, decoding, captions, loader."""
