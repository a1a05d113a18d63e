"""The nearest training images: embed, search, re-rank on exact pixels."""
