"""From images and texts to embeddings: one pass for all models, the cache, files for other tools."""
