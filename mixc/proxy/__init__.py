"""The small model, its training loop, and its per-token losses."""

import os

# Small models have short parallel parts. Threads that spin while they wait for the next one take
# the cores from whoever works: on two cores with a busy neighbour, steps became seven times slower.
# OpenMP reads this when torch is first imported, which is after this line.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
