"""Rows of data sets: read from files, recognised, validated, counted."""
