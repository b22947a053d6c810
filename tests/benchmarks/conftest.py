"""Keeps the benchmarks, which need libraries that the tests do not, out of the test suite."""

collect_ignore_glob = ["*.py"]
