"""Versions change under constant load, and every answer is held against the weights that it names."""
