"""Fine-tuning jobs: what the service, which takes them, and the trainer, which does them, agree on."""
