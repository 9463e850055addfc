"""Hostile files: what they are given to, what is done to good ones, and what nothing may cost.

`tests/test_hostile_files.py` mutates with hypothesis, `python -m tests.fuzzing` (`make fuzz`) is a
coverage-guided fuzzer, and `tests/corpus/` keeps what either has found.
"""
