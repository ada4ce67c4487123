"""From the parts of a source to batches of pixels, on threads. Knows nothing of torch, models or caches."""
