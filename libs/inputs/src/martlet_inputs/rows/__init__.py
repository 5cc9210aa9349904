"""Rows of data sets: read, recognised, checked one by one. Imports no ML library."""
