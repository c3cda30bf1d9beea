"""The problem that methods solve, simplex arithmetic, intervals, weights.json."""
