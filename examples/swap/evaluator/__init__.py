"""An evaluator written from Martlet's protos alone."""
