"""Timings and costs of the components, as ratios; tools/benchmark.py runs them."""
