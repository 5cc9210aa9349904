"""What every job store must do, as a pytest class.

Subclass ``JobStoreSuite`` and give it the fixtures ``store`` (an empty store) and ``pass_time``::

    class TestMyJobStore(JobStoreSuite):
        @pytest.fixture
        def store(self): ...

        @pytest.fixture
        def pass_time(self): ...
"""

import pytest

pytest.register_assert_rewrite(
    *(f"martlet_core.testing.job_store_suite.{name}" for name in ("creating", "events", "states", "workers"))
)

from martlet_core.testing.job_store_suite.creating import CreatingCases  # noqa: E402
from martlet_core.testing.job_store_suite.events import EventCases  # noqa: E402
from martlet_core.testing.job_store_suite.states import StateCases  # noqa: E402
from martlet_core.testing.job_store_suite.workers import WorkerCases  # noqa: E402

__all__ = ["JobStoreSuite"]


class JobStoreSuite(CreatingCases, StateCases, WorkerCases, EventCases):
    """All cases."""
