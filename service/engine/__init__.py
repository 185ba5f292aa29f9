"""What computes: vLLM, or an honest fake, behind one Protocol."""
