"""What one request goes through: a version is chosen, held, and asked. Knows no HTTP."""
