"""Thin: from HTTP to the use case and back."""
