"""A cache on disk: its recipe, plan, parts and index. Knows nothing of sources, images or models."""
