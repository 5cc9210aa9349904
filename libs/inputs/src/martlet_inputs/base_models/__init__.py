"""Base models by name: what is known about them, and where their files are.

``catalog`` is data and light to import; ``prepare`` fetches and converts, and needs the ML libraries.

    python -m martlet_inputs.base_models list
    python -m martlet_inputs.base_models prepare NAME --out DIRECTORY
"""
