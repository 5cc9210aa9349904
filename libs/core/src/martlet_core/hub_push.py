"""Puts a model onto Hugging Face, in an environment that has its library.

    HF_TOKEN=... python -m martlet_core.hub_push DIRECTORY hf:org/name [--public]    answers in one JSON line

The token is read from the environment by the library alone: it is neither an argument nor written anywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from martlet_core.errors import FailedPrecondition, InvalidArgument, MartletError, PermissionDenied, Unavailable
from martlet_core.hub import MODEL_PATTERNS
from martlet_core.model_rules import parse_hub_id

#: What goes up beside weights, configuration and tokenizer.
_PATTERNS = (*MODEL_PATTERNS, "README.md", "*.gguf")


def push(directory: Path, target: str, *, public: bool = False) -> str:
    """Upload a model's files in one commit; returns the commit's address.

    Args:
        directory: a model or an adapter. Only weights (safetensors, GGUF), configuration, tokenizer and README.md go up.
        target: ``[hf:]org/name``; made if it isn't there.
        public: whether a repository that is made can be read by everyone.

    Raises:
        InvalidArgument: not a repository of Hugging Face.
        FailedPrecondition: no token, or no weights.
        PermissionDenied: the token may not write there.
        Unavailable: the hub can't be reached.
    """
    wanted = parse_hub_id(target)
    if wanted is None or wanted.hub != "hf" or wanted.revision:
        raise InvalidArgument.field(
            "to", f"is {target!r}; give hf:org/name (ModelScope takes its own client's uploads only)"
        )
    if not os.environ.get("HF_TOKEN"):
        raise FailedPrecondition(
            "HF_TOKEN isn't set: give a token that may write, as a variable.", reason="HUB_TOKEN_NEEDED"
        )
    if not any(directory.glob("*.safetensors")) and not any(directory.glob("*.gguf")):
        raise FailedPrecondition(
            f"{directory.name} has no weights as safetensors or GGUF.", reason="HUB_FORMAT_REFUSED"
        )
    from httpx2 import TransportError  # pyright: ignore[reportMissingImports]  # what its library speaks HTTP with
    from huggingface_hub import HfApi  # pyright: ignore[reportMissingImports]  # not in every environment
    from huggingface_hub.errors import HfHubHTTPError  # pyright: ignore[reportMissingImports]

    hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=os.environ["HF_TOKEN"])
    try:
        hub.create_repo(wanted.repository, private=not public, exist_ok=True)
        done = hub.upload_folder(
            repo_id=wanted.repository,
            folder_path=directory,
            allow_patterns=list(_PATTERNS),
            commit_message="Upload by Martlet",
        )
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403, 404):
            text = f"HF_TOKEN may not write to {wanted.repository} (HTTP {status}); give one that may, or another repository."
            raise PermissionDenied(text, reason="HUB_WRITE_REFUSED") from error
        raise _unreachable(error) from error
    except (TransportError, OSError) as error:
        raise _unreachable(error) from error
    return str(done.commit_url)


def _unreachable(error: Exception) -> Unavailable:
    text = f"Hugging Face can't be reached ({type(error).__name__}); let this machine reach it (HTTPS_PROXY, HF_ENDPOINT), and push again."
    return Unavailable(text, reason="HUB_UNREACHABLE", retry_after_seconds=30.0)


def main() -> int:
    """Push; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m martlet_core.hub_push", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("target")
    parser.add_argument("--public", action="store_true")
    arguments = parser.parse_args()
    try:
        answer = {"commit": push(arguments.directory, arguments.target, public=arguments.public)}
    except MartletError as error:
        answer = {"error": error.to_dict()}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
