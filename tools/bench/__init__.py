"""Parts of `tools/bench_tokenize.py`."""
