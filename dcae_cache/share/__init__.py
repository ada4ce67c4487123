"""Caches handed to others and taken from them: pushed to a hub as data sets, and pulled from there."""
