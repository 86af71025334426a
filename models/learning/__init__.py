"""Training: from a log of events to weights. The only package that imports torch; no worker imports it."""
