"""A store to weights: a file per method. See `mixc.registry.METHODS`."""
