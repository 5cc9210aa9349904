"""Martlet's inference service: ``martlet.inference.v1`` in front of an engine."""
