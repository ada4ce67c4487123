"""A cache read while training. Knows nothing of sources, images or models."""
