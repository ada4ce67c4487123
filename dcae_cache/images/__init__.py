"""Encoded bytes to upright sRGB pixels in a bucket. Knows nothing of sources, tensors or caches."""
