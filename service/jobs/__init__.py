"""Fine-tuning jobs as the service sees them: it takes them, and has them done elsewhere."""
