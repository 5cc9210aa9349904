"""What the gateway tidies up now and then: files and uploads whose time is over."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from martlet_core.housekeeping import Chore
from martlet_core.job_archive import specs_in_use
from martlet_core.jobs import JobStore

from martlet_gateway.artifact_uploads import ArtifactUploads
from martlet_gateway.file_store import FileStore
from martlet_gateway.upload_store import UploadStore

log = logging.getLogger(__name__)


def gateway_chores(
    jobs: JobStore, stages: Sequence[str], files: FileStore, uploads: UploadStore, artifact_uploads: ArtifactUploads
) -> list[Chore]:
    """Chores for ``Housekeeper``. ``stages`` are those whose jobs may need a file."""

    def sweep_files(give_up: Callable[[], bool]) -> None:
        deleted = files.sweep(specs_in_use(jobs, stages), give_up=give_up)
        log.info("swept expired files", extra={"files": deleted})

    def sweep_uploads(give_up: Callable[[], bool]) -> None:
        ended, forgotten = uploads.sweep(give_up=give_up), artifact_uploads.sweep(give_up=give_up)
        log.info("swept uploads", extra={"uploads": ended, "artifact_uploads": forgotten})

    return [Chore("files", sweep_files), Chore("uploads", sweep_uploads)]
