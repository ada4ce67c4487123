"""How close reconstructions are to their images: one by one, and as sets."""
