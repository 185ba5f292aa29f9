"""What changes under an adapter's name: releases followed, canaries judged."""
