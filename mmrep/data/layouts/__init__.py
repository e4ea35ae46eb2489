"""Image-text and class sets as others lay them out on disk, one family a file."""
