"""Latents that others made become a cache, one file for each format. Knows nothing of images or of how to encode.

import_cache("their-latents", "latents", ImportRequest(kind="npy", model="f32c32-in", scaled=True))     # run.py
"""
