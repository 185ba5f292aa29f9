"""What is kept of the answers, to know whether they are good."""
