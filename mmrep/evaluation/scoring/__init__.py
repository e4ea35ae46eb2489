"""Arithmetic on embeddings and scores: metrics, ranks, ties, regressions. Nothing here depends on a model."""
