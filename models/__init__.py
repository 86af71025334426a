"""Everything that decides what is recommended: the pure domain, the encoders that serve it, the learning that improves it."""
