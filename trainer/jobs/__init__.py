"""Fine-tuning jobs: taken from the queue one at a time, each done by a process of its own."""
