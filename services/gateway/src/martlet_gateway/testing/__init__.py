"""Doubles of what a gateway speaks to, for tests of whole gateways."""
