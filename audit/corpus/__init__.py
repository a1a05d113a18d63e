"""The training set: reading it with attribution, and what repeats in it."""
