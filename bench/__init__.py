"""Benchmarks: the whole relay, every check on, against a yardstick measured in the same run on the same machine."""
