"""Orbital's relay."""

__version__ = "0.1.0"
