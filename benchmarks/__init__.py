"""Benchmarks are run one by one, by ``python -m benchmarks.<name>``; README.md has the rules."""
