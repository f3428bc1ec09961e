"""Rewriting stored results when their format changes, instead of running them again."""
