"""Frozen dataclasses for every room and their checks; standard library only, so that a config error is found before torch is imported."""
