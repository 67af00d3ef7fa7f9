"""Benchmarks: run one by ``python -m benchmarks.<name>``; README.md has the rules."""
