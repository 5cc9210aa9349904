"""Makes a tiny random Llama in the environment of a family of methods: argument DIRECTORY."""

from __future__ import annotations

import sys
from pathlib import Path

from martlet_quantizer.testing import save_tiny_model

if __name__ == "__main__":
    save_tiny_model(Path(sys.argv[1]))
