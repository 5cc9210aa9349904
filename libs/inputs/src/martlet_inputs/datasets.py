"""Data sets as jobs name them: found, laid out, validated row by row. Imports no ML library."""

from __future__ import annotations

import tempfile
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from martlet_core.artifacts.types import Artifact, ArtifactStore
from martlet_core.errors import InvalidArgument

from martlet_inputs.base_models.resolve import get_artifact
from martlet_inputs.rows.kinds import CONVERSATIONS, RowKind
from martlet_inputs.rows.report import DataReport
from martlet_inputs.rows.validate import require_usable, validate_dataset

_REPORTS_KEPT = 256


class DatasetChecker:
    """Validates data sets row by row. An artifact never changes, so its report is kept."""

    def __init__(self, artifacts: ArtifactStore, scratch_dir: Path, max_json_bytes: int) -> None:
        self._artifacts = artifacts
        self._scratch_dir = scratch_dir
        self._max_json_bytes = max_json_bytes
        self._reports: OrderedDict[tuple[str, RowKind[Any]], DataReport] = OrderedDict()
        self._lock = threading.Lock()

    def check(
        self, name: str, tenant: str, on_bad_rows: str, field: str, kind: RowKind[Any] = CONVERSATIONS
    ) -> DataReport:
        """The report of a data set of rows of a kind that can be trained on.

        Raises:
            NotFound: no such artifact, or another tenant's.
            InvalidArgument: it is no data set, is empty, or has bad rows.
        """
        artifact = get_artifact(self._artifacts, name, tenant, field)
        if artifact.kind != "dataset":
            raise InvalidArgument.field(field, f"{name} is of kind {artifact.kind}; give a data set")
        report = self._report(artifact, field, kind)
        require_usable(report, on_bad_rows, field, kind)
        return report

    def _report(self, artifact: Artifact, field: str, kind: RowKind[Any]) -> DataReport:
        key = (artifact.id, kind)
        with self._lock:
            if key in self._reports:
                self._reports.move_to_end(key)
                return self._reports[key]
        self._scratch_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._scratch_dir) as directory:
            path = Path(directory) / "dataset"
            self._artifacts.download(artifact.id, path)
            try:
                report = validate_dataset(path, self._max_json_bytes, kind)
            except InvalidArgument as error:
                description = error.violations[0].description if error.violations else error.message
                raise InvalidArgument.field(field, description, reason=error.reason) from error
        with self._lock:
            self._reports[key] = report
            while len(self._reports) > _REPORTS_KEPT:
                self._reports.popitem(last=False)
        return report
