"""Corpora to documents: a file per input format. See `mixc.registry.READERS`."""
