"""The demo: MovieLens-100K through a broker and a worker on this machine, measured from outside."""
