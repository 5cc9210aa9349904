"""gRPC helpers that every service and client shares; import the modules, this package re-exports nothing."""
