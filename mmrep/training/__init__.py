"""Training: built first, then a short loop."""
