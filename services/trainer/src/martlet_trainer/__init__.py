"""Martlet's trainer: recipes that train and merge language models, and the service around them."""
