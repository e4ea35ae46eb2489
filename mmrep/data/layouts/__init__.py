"""Readers of image-text and class sets in other projects' layouts, for `mmrep data pack` and for evaluation.

They use csv and json of the standard library, not pandas or torchvision's ImageFolder: every malformed row is counted
and named with its line, and a missing image is a problem that is reported before anything is written.
"""
