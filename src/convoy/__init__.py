"""Labelled images to a CNN classifier that is trained, compared, proven and served."""

__version__ = "0.1.0"
