"""Stores of user states and item vectors behind the ports of `models.domain`; the only importer of qdrant clients."""
