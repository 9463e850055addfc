"""Suites that everything of a kind has to pass, and joins by being registered."""
