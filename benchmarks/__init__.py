"""Benchmarks, one a module: `python -m benchmarks.NAME [--run RUN] [--quick]` prints a table and writes its results.

Full results are kept in `benchmarks/results/NAME.json`, with the command that makes them again; `--quick` is a smoke
test, whose results go to `.cache/benchmarks/`. Times are measurements of one machine; ratios are of the same run.
"""
