"""Rows to trainers' files: a file per output format. See `mixc.registry.WRITERS`."""
