"""The ``martlet`` command: starts the platform on one machine and talks to it through its public REST."""
