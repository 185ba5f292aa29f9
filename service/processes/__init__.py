"""Several API processes on one engine: one decides what is loaded and served, the others follow it."""
