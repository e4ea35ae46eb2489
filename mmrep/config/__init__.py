"""Frozen dataclasses for every room, and their checks; standard library only, so that errors are found before torch."""
