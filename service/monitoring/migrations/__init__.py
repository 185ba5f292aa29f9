"""How the feedback database came to its tables, step by step; run at the start of the service."""
