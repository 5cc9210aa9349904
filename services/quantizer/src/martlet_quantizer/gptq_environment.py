"""Makes GPTQModel 7.7.0 run on few cores; both quantizing and transformers' loading of AWQ and GPTQ models need it."""

from __future__ import annotations

import os


def prepare() -> None:
    """Call before anything imports gptqmodel.

    On two cores it makes a pool of one CPU thread by itself, and then asks that pool for two.
    """
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, os.cpu_count() or 1)))
