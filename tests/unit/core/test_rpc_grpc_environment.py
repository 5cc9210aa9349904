"""The services on a chat's path choose how gRPC polls and what it does at a fork before it is imported: later has no effect."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CHOSEN = ("GRPC_EXPERIMENTS", "GRPC_ENABLE_FORK_SUPPORT")
MODULES = ("martlet_gateway.__main__", "martlet_inference.__main__")


def run(module: str, code: str, **environ: str) -> str:
    clean = {key: value for key, value in os.environ.items() if key not in CHOSEN}
    code = f"import os, sys, {module}\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean | environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("module", MODULES)
def test_polling_is_chosen_before_grpc_is_imported(module: str) -> None:
    order = "names = list(sys.modules); print(names.index('martlet_core.rpc.grpc_environment') < names.index('grpc'))"
    assert run(module, order) == "True"
    assert run(module, "print(os.environ['GRPC_EXPERIMENTS'])").startswith("-event_engine_client,")
    enabled = "from grpc._cython import cygrpc; print(cygrpc.is_fork_support_enabled())"
    assert run(module, enabled) == "False"


def test_grpc_knows_the_names_that_are_switched_off() -> None:
    """gRPC drops its experiments over time; it says on stderr which names it doesn't know."""
    said = [
        subprocess.run(
            [sys.executable, "-c", f"{code}import grpc; grpc.insecure_channel('127.0.0.1:1').close()"],
            env={key: value for key, value in os.environ.items() if key != "GRPC_EXPERIMENTS"},
            capture_output=True,
            text=True,
            check=True,
        ).stderr
        for code in (
            "import martlet_core.rpc.grpc_environment; ",
            "import os; os.environ['GRPC_EXPERIMENTS'] = 'no_such_thing'; ",
        )
    ]
    assert ["Unknown experiment" in text for text in said] == [False, True]


def test_a_deployment_that_chose_itself_is_left_alone() -> None:
    assert run(MODULES[0], "print(os.environ['GRPC_EXPERIMENTS'])", GRPC_EXPERIMENTS="work_serializer_dispatch") == (
        "work_serializer_dispatch"
    )
