"""Which code made an artifact: fixed in its metadata when it is committed, read back by its lineage."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version

#: Key of the metadata.
MADE_BY = "made_by"
_CODE, _IMAGE = "MARTLET_CODE_VERSION", "MARTLET_IMAGE"


def made_by() -> dict[str, str]:
    """Version of the code and name of the container image, as far as they are known.

    An image's build sets ``MARTLET_CODE_VERSION`` (a commit) and ``MARTLET_IMAGE`` (a name with its digest). Without them
    the version is the installed package's, and there is no image.
    """
    try:
        code = os.environ.get(_CODE) or version("martlet-core")
    except PackageNotFoundError:
        code = ""
    found = {"code_version": code, "image": os.environ.get(_IMAGE, "")}
    return {name: value for name, value in found.items() if value}
