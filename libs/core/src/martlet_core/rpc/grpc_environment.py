"""Import this before grpc, which reads these variables when it is imported. A deployment that sets one itself is left alone.

How gRPC waits for the network in a process on the path of a chat: its EventEngine hands each event from thread to thread
once more than the poller that it replaces. Without it a chat through the gateway took 2.28 ms instead of 2.56 (p50, grpcio
1.85.1, 2 busy cores, medians of six alternating runs).

What gRPC does when a process forks: nothing, since ours only fork to run another program. Its handlers stop its threads and
start them again around each fork, and where a call is under way they can crash the process: 1 of 40 starts of vLLM beside an
attempt to reach the gateway ended with SIGSEGV (grpcio 1.85.1, uvloop 0.23), none of 40 without them.
"""

from __future__ import annotations

import os

os.environ.setdefault(
    "GRPC_EXPERIMENTS",
    "-event_engine_client,-event_engine_listener,-event_engine_for_all_other_endpoints",
)
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
