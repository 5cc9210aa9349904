"""Celery as a doorbell: a message carries a job's id and nothing else, and is acknowledged on receipt.

The truth about jobs is in the job store. A ring that gets lost costs seconds (the reconciler rings again, idle workers
look by themselves); a ring that comes twice finds the job claimed. Broker settings follow from measurements, see
``docs/adr/0002-worker-pool.md``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

from celery import Celery, signals
from celery.exceptions import CeleryError
from kombu.exceptions import KombuError

logger = logging.getLogger(__name__)

RING_TASK = "martlet.ring"
KEY_PREFIX = "martlet:bell:"
#: Seconds until a connection attempt or a reply counts as failed; a bell must never hold a request up for long.
_CONNECT_SECONDS = 2.0
#: Longer than a blocking pop (1 s), shorter than a stuck connection would annoy.
_SOCKET_SECONDS = 10.0


class Bell(Protocol):
    """Wakes a worker for a job."""

    def ring(self, queue: str, job_id: str) -> None:
        """Say that a job waits in a queue. Never raises: a lost ring is only a delay."""
        ...


class CeleryBell:
    """Rings by a Celery message over pooled connections. Thread-safe."""

    def __init__(self, redis_url: str) -> None:
        self._app = make_celery_app(redis_url)

    def ring(self, queue: str, job_id: str) -> None:
        """Publish the job's id; a broker that doesn't answer is logged, not raised."""
        try:
            self._app.send_task(RING_TASK, args=(job_id,), queue=queue, ignore_result=True, retry=False)
        except (KombuError, CeleryError, OSError) as error:
            logger.warning("The bell for job %s could not be rung (%s); the reconciler will ring again.", job_id, error)

    def close(self) -> None:
        """Close the pooled connections."""
        self._app.close()


def make_celery_app(redis_url: str, *, on_ring: Callable[[str], None] | None = None, queue: str = "") -> Celery:
    """The Celery application, for publishing and, with ``on_ring``, for consuming.

    Args:
        redis_url: the broker; the same server as the job store's will do, keys are prefixed.
        on_ring: called in a worker's pool thread with the job's id; blocks while the worker is busy.
        queue: queue a consumer listens to.
    """
    app = Celery("martlet", broker=redis_url, set_as_current=False)
    app.conf.update(_settings(queue))
    if on_ring is not None:
        _register_ring(app, on_ring)
    return app


def _register_ring(app: Celery, on_ring: Callable[[str], None]) -> None:
    @app.task(name=RING_TASK, ignore_result=True)
    def ring(job_id: str) -> None:
        on_ring(job_id)


def _settings(queue: str) -> dict[str, Any]:
    settings: dict[str, Any] = {
        # Nothing but ids and JSON: whoever can write to the broker must not be able to run code.
        "accept_content": ["json"],
        "task_serializer": "json",
        "result_backend": None,
        "task_ignore_result": True,
        # Acknowledged on receipt: a redelivery after the visibility timeout can't happen while a job runs for hours.
        "task_acks_late": False,
        "worker_prefetch_multiplier": 1,
        "worker_enable_remote_control": False,
        "worker_send_task_events": False,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_connection_timeout": _CONNECT_SECONDS,
        "broker_transport_options": {
            "global_keyprefix": KEY_PREFIX,
            "socket_connect_timeout": _CONNECT_SECONDS,
            "socket_timeout": _SOCKET_SECONDS,
            "socket_keepalive": True,
            "health_check_interval": 25,
            "visibility_timeout": 3600,
        },
        "task_create_missing_queues": True,
    }
    if queue:
        settings["task_default_queue"] = queue
    return settings


def run_celery_worker(
    redis_url: str, queue: str, name: str, *, on_ring: Callable[[str], None], on_stop: Callable[[], None]
) -> int:
    """Consume rings until SIGTERM (or SIGINT); returns the exit code. Call it in the main thread.

    Args:
        redis_url: the broker.
        queue: queue to listen to.
        name: name of this worker in logs.
        on_ring: see ``make_celery_app``.
        on_stop: called from the signal's handler: must return at once. Celery then waits for ``on_ring`` to return.
    """
    app = make_celery_app(redis_url, on_ring=on_ring, queue=queue)

    def shutting_down(**_: object) -> None:
        on_stop()

    def keep_our_logging(**_: object) -> None:
        """Celery configures logging unless someone listens to this signal."""

    signals.worker_shutting_down.connect(shutting_down)
    signals.setup_logging.connect(keep_our_logging)
    worker = app.Worker(
        pool="threads",
        concurrency=1,
        queues=[queue],
        hostname=f"{queue}@{name}",
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    worker.start()
    return worker.exitcode or 0
