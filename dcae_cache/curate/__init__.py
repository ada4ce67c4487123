"""Caches made from caches: merged, filtered, split, annotated. Rows are copied, nothing is encoded."""
