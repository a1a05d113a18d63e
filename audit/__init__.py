"""Verbatim: which training images does a text-to-image model give back, and can it be proved?"""

__version__ = "0.1.0"
