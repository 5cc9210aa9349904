"""Martlet's quantizer: makes smaller models out of whole ones, and measures what that cost."""
