"""Caches in the formats of trainers, one file for each format. Knows nothing of sources, images or models.

export_cache("latents", "wids", "for-sana")     # run.py
"""
