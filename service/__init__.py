"""The running app: HTTP in, vLLM behind, metrics out."""
