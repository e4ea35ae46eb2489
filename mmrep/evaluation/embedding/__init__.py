"""Embeddings of images and texts: one pass for all models, the cache, files for other tools."""
