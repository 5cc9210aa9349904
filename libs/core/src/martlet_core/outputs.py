"""What a recipe leaves behind becomes artifacts of its job."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from martlet_core.artifacts.types import Artifact, ArtifactStore
from martlet_core.backoff import retry_unavailable
from martlet_core.errors import MartletError
from martlet_core.ids import output_artifact_id
from martlet_core.jobs import Claim
from martlet_core.model_rules import ARTIFACT_PREFIX
from martlet_core.provenance import MADE_BY, made_by


class OutputUploader:
    """Stores the output directories of one attempt.

    Args:
        artifacts: where to.
        claim: the hold on the job.
        workdir: the attempt's directory.
        give_up: ends the tries when the store doesn't answer.

    Attributes:
        parents: artifacts that the outputs are made from.
        stored: what was stored so far.
    """

    def __init__(self, artifacts: ArtifactStore, claim: Claim, workdir: Path, give_up: Callable[[], bool]) -> None:
        self._artifacts = artifacts
        self._claim = claim
        self._workdir = workdir
        self._give_up = give_up
        self.parents: Sequence[str] = ()
        self.stored: list[Artifact] = []

    def upload(self, outputs: Mapping[str, Mapping[str, Any]]) -> dict[str, Artifact]:
        """Store the outputs that the recipe named; returns the artifacts by name."""
        artifacts: dict[str, Artifact] = {}
        for name, output in outputs.items():
            artifacts[name] = retry_unavailable(
                f"Uploading output {name}",
                lambda name=name, output=output: self._put(name, output),
                give_up=self._give_up,
            )
            self.stored.append(artifacts[name])
        return artifacts

    def upload_evidence(self, final: Mapping[str, Any], error: MartletError) -> Mapping[str, Any]:
        """Store what a recipe has to show for its failure, name it in the error, and return the failed job's result."""
        stored = self.upload(final.get("outputs", {}))
        named = {f"{name}_artifact": ARTIFACT_PREFIX + artifact.id for name, artifact in stored.items()}
        error.metadata.update(named)
        return {**final.get("values", {}), **named}

    def _put(self, name: str, output: Mapping[str, Any]) -> Artifact:
        job = self._claim.job
        return self._artifacts.put_directory(
            (self._workdir / output["path"]).resolve(),
            kind=output["kind"],
            tenant=job.tenant,
            artifact_id=output_artifact_id(job.id, self._claim.token, name),
            display_name=f"{job.display_name or job.kind}: {name}",
            metadata={**output["metadata"], MADE_BY: made_by()},
            source_job=job.id,
            parents=self.parents,
        )
