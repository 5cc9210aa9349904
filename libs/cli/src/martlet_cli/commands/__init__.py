"""One file a command group: ``add(subparsers)``, and handlers that take a ``Context`` and the parsed arguments."""
