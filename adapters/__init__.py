"""What trainer and service must agree on: tasks, manifest, store. Imports neither torch nor vLLM."""
