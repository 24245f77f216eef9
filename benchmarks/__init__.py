"""Benchmarks: each module prints a Markdown table and runs by `python -m benchmarks.<name>`."""
