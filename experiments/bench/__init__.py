"""Benchmarks: each prints ratios of quantities measured in the same run."""
