"""The small model, its training loop, and its per-token losses."""
