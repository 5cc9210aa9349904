"""Runs: small graphs of jobs, described in YAML, that go on where they stopped (docs/adr/0010-runs.md)."""
