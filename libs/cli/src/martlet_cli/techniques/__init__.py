"""``martlet bench techniques``: ways of training compared on the same model, rows, budget and seeds."""
