"""Scaling laws: sweeps of runs, fits to their points, comparisons."""
