"""Which weights are trained, and how: one file a tuner."""
