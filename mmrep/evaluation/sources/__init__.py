"""Readers of evaluation sets: shards, folders and annotation files, and the checks of them."""
