"""Documents to rows: permutations, packing, the domain deck."""
