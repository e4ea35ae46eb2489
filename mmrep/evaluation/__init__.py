"""Evaluation: zero-shot classification and image-text retrieval, as CLIP_benchmark defines them."""
