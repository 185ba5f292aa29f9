"""Many replicas behind a router: what callers see while one is killed, hangs, is cut off or is upgraded."""
