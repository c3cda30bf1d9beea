"""Documents to shards: encoders, work units, the worker loop."""
