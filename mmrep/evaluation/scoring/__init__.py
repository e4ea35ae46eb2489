"""Arithmetic on embeddings and scores: metrics, ranks, ties, regressions. Nothing here knows a model."""
