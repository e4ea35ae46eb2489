"""Evaluation of trained models: sets, their embeddings, and the tasks that score these, a suite at a time."""
