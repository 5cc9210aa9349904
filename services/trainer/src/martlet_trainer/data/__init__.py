"""Rows of data sets: read, recognised, validated and turned into tokens. Only ``encode`` and ``batching`` need an ML library."""
