"""The making of a cache: the story is pipeline.py."""
