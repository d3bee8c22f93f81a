"""Benchmarks: each prints JSON with medians, and ratios against a baseline run beside it in the same call."""
