"""Import this before grpc: how gRPC waits for the network in a process on the path of a chat.

gRPC's EventEngine hands each event from thread to thread once more than the poller that it replaces. Without it a chat
through the gateway took 2.28 ms instead of 2.56 (p50, grpcio 1.85.1, 2 busy cores, medians of six alternating runs). gRPC
reads the variable when it is imported; a deployment that sets it itself is left alone.
"""

from __future__ import annotations

import os

os.environ.setdefault(
    "GRPC_EXPERIMENTS",
    "-event_engine_client,-event_engine_listener,-event_engine_for_all_other_endpoints",
)
