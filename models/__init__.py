"""Everything that decides what is recommended: the pure domain and the encoders that serve it."""
