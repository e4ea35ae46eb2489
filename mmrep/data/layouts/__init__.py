"""Readers of image-text and class sets in other projects' layouts."""
