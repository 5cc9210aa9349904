"""A short fine-tuning job of the headlines example on a running platform, with the stock client."""

from __future__ import annotations

from typing import Any

import httpx
from headlines import DATA, LORA_RANK, MODEL
from martlet_cli.testing import RunningPlatform


def fine_tune(platform: RunningPlatform, seed: int = 0) -> Any:
    """Train an adapter for two steps with the stock client; returns the job once its event stream has ended.

    Raises:
        SystemExit: the job did not succeed.
    """
    client = platform.client
    with (DATA / "train.jsonl").open("rb") as rows:
        uploaded = client.files.create(file=rows, purpose="fine-tune")
    extension = {
        "tuner": {"kind": "lora", "lora_rank": LORA_RANK, "lora_alpha": 2 * LORA_RANK},
        "hyperparameters": {"max_steps": 2, "per_device_batch_size": 4},
    }
    job = client.fine_tuning.jobs.create(
        model=MODEL, training_file=uploaded.id, seed=seed, extra_body={"martlet": extension}
    )
    wait_for_end(platform, job.id)
    done = client.fine_tuning.jobs.retrieve(job.id)
    if done.status != "succeeded":
        raise SystemExit(f"the job {job.id} is {done.status}: {done.error}")
    return done


def wait_for_end(platform: RunningPlatform, job_id: str) -> None:
    """Read a job's event stream to its end."""
    url = f"{platform.base_url}/fine_tuning/jobs/{job_id}/events?stream=true"
    headers = {"authorization": f"Bearer {platform.api_key}"}
    with httpx.stream("GET", url, headers=headers, timeout=600) as response:
        response.raise_for_status()
        for _ in response.iter_lines():
            pass
