"""Labelled images to a CNN classifier that is trained, compared, verified and served."""

__version__ = "0.1.0"
