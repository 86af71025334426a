"""Everything that decides what is recommended: the pure domain and the encoders that serve it."""

from pathlib import Path

from models.compiled_passes import drop_stale

drop_stale(Path(__file__).parent)
