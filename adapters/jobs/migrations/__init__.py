"""How the jobs database came to its tables, step by step."""
