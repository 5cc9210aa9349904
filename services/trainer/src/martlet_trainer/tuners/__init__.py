"""Which weights are trained, and how: one file a tuner, one line a name in ``kinds``. Imports no ML library."""
