"""Measures what models answer, on rows they never saw, with intervals."""
