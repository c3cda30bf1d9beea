"""Tests in `interpreted` need TRITON_INTERPRET before Triton is imported: see its driver."""

import os

collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]
