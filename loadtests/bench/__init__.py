"""Ours, stock vLLM and the server people write first, on the same work: ``python -m loadtests.bench``."""
