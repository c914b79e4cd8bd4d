"""Benchmarks: ``python -m recipes.bench NAME``, each a table of ratios in docs/performance_tables.md."""
