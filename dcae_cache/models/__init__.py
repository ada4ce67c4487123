"""Autoencoders: names, files, networks, and running them. Knows nothing of sources or caches."""
