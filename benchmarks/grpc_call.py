"""How long a bare gRPC call to a replica takes: the part of the gateway's way that no code of the gateway can shorten.

    python benchmarks/grpc_call.py ADDRESS TOKEN MODEL MAX_TOKENS    prints the milliseconds of each call as JSON

One call after the other on one channel, with the client and the event loop that the gateway uses, in a process of its
own.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

from environment import ROOT

CALLS, WARM_CALLS = 1000, 200


def time_calls(address: str, token: str, model: str, max_tokens: int, *, rounds: int) -> dict[str, float]:
    """Percentiles in milliseconds, each the median of the rounds."""
    python = ROOT / ".martlet/envs/gateway/bin/python"
    argv = [str(python), __file__, address, token, model, str(max_tokens)]
    runs = []
    for _ in range(rounds):
        done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=300)
        runs.append(statistics.quantiles(json.loads(done.stdout), n=100))
    return {f"p{p}": round(statistics.median(run[p - 1] for run in runs), 3) for p in (50, 95, 99)}


async def call_one_by_one(address: str, token: str, model: str, max_tokens: int) -> list[float]:
    """Milliseconds of each call, without the first ones."""
    from martlet.inference.v1 import inference_pb2
    from martlet_core.rpc.context import INTERNAL_TOKEN_KEY
    from martlet_gateway.clients import InferenceChannels

    messages = [{"role": "user", "content": "the quick brown fox jumps over the lazy dog"}]
    body = json.dumps({"model": model, "messages": messages, "max_tokens": max_tokens}).encode()
    route = inference_pb2.OPEN_AI_ROUTE_CHAT_COMPLETIONS
    request = inference_pb2.CallOpenAIRequest(route=route, model=model, body=body)
    channels = InferenceChannels()
    call, found = channels.stub(address).whole, []
    for _ in range(WARM_CALLS + CALLS):
        begun = time.perf_counter()
        await call(request, metadata=((INTERNAL_TOKEN_KEY, token),))
        found.append((time.perf_counter() - begun) * 1000)
    await channels.close()
    return found[WARM_CALLS:]


def main() -> None:
    """Be the process that calls."""
    import uvloop
    from martlet_core.rpc import grpc_environment  # noqa: F401  # before grpc, as in the gateway

    address, token, model, max_tokens = sys.argv[1:]
    print(json.dumps(uvloop.run(call_one_by_one(address, token, model, int(max_tokens)))))


if __name__ == "__main__":
    main()
