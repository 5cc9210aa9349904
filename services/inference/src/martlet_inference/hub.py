"""Models of the Hugging Face hub: downloaded whole before an engine is started with them, then only read."""

from __future__ import annotations

import asyncio
from pathlib import Path

from martlet_core.errors import FailedPrecondition, NotFound, Unavailable
from martlet_core.model_rules import parse_hub_id

#: Weights, configuration and tokenizer. Code in a repository is never fetched.
_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.tiktoken", "*.txt", "*.jinja"]
_RETRY_SECONDS = 30.0


class HubModels:
    """Snapshots of hub models in a cache that the machine's services share.

    The engine could fetch them itself, but then the model before it would be gone while it does.

    Args:
        cache_dir: where they lie, in the hub library's own layout.
    """

    def __init__(self, cache_dir: Path) -> None:
        self._cache_dir = cache_dir.resolve()

    async def files(self, name: str) -> Path:
        """The directory of ``org/model@revision``, downloaded if it isn't there.

        Raises:
            NotFound: the hub has no such model or revision, or doesn't let us read it.
            FailedPrecondition: the name has no revision.
            Unavailable: it isn't there and the hub can't be reached.
        """
        model = parse_hub_id(name)
        if model is None or not model.revision:
            raise FailedPrecondition(
                f"{name!r} doesn't say which revision of the hub's model is meant; write it as org/model@commit.",
                reason="REVISION_REQUIRED",
            )
        return await asyncio.to_thread(self._snapshot, model.repository, model.revision)

    def _snapshot(self, repository: str, revision: str) -> Path:
        from huggingface_hub import snapshot_download  # comes with the engine; heavy
        from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

        name = f"{repository}@{revision}"
        try:
            return Path(
                snapshot_download(
                    repository, revision=revision, cache_dir=self._cache_dir, allow_patterns=list(_PATTERNS)
                )
            )
        except (RepositoryNotFoundError, RevisionNotFoundError) as exc:
            raise NotFound(
                f"The hub has no {name!r} that this replica may read; a gated model needs HF_TOKEN.",
                reason="HUB_MODEL_NOT_FOUND",
                metadata={"model": name},
            ) from exc
        except (HfHubHTTPError, OSError) as exc:  # its "not in the cache" is an OSError too
            raise Unavailable(
                f"{name!r} is not in the cache and the hub can't be reached ({type(exc).__name__}). Let the replica reach "
                "the hub (HTTPS_PROXY, HF_ENDPOINT), or give it the files: MARTLET_MODEL_DIR.",
                reason="HUB_UNREACHABLE",
                retry_after_seconds=_RETRY_SECONDS,
            ) from exc
