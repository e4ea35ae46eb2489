"""Measurements inside a trained model: activations, patch weights, accuracy without the salient part, other sizes."""
