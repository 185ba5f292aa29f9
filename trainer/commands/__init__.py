"""The commands of ``python -m trainer``, a module each: ``add`` declares it, and the rest runs it."""
