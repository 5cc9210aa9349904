"""Martlet's gateway: REST and gRPC in front of the services; no ML and no job logic."""
