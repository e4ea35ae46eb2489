"""Dual encoders: timm trunk + pooling + projection on one side, a text tower on the other."""
