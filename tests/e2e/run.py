"""``make compose-test``: the whole system in containers, brought up, used, scaled, broken, backed up and taken down.

    python -m tests.e2e.run                     everything; writes docs/compose-test.md
    python -m tests.e2e.run --phase scale kill  only these, on what an earlier call left running (see --keep)
    python -m tests.e2e.run --keep              leave it running at the end, or where it failed

Needs root, for the engine. State and logs are in .martlet/compose-test.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import openai
from martlet_cli.pip_config import base_python, pip_options

from tests.e2e import checks, foreign, lifecycle, starts, summary
from tests.e2e.stack import FILES, PROJECT, ROOT, Failed, Stack, check, output, service_of

HOME = ROOT / ".martlet" / "compose-test"
#: The engine that is swapped in, MARTLET_ENGINE's value for it: the same image holds both.
SECOND_ENGINE = "transformers"
_SIZES = "{{.Type}}: {{.Size}}"


class ComposeTest:
    """The phases, in their order, and what they leave for one another."""

    def __init__(self, files: tuple[str, ...]) -> None:
        HOME.mkdir(parents=True, exist_ok=True)
        self._state_file = HOME / "state.json"
        self.state: dict[str, Any] = {"phases": {}}
        if self._state_file.exists():
            self.state = json.loads(self._state_file.read_text())
        ports = self.state.setdefault("ports", {"http": _free_port(), "grpc": _free_port()})
        self.stack = Stack(_environment(ports), HOME / "compose.log", files)
        #: The same with the foreign evaluator.
        self.foreign_stack = Stack(self.stack.environment, self.stack.log, (*files, foreign.OVERLAY))
        self.ports: dict[str, int] = ports

    def save(self) -> None:
        """Keep the state for the next call."""
        self._state_file.write_text(json.dumps(self.state, indent=2) + "\n")

    @property
    def client(self) -> openai.OpenAI:
        """The stock client with the key that `init` registered."""
        key = (HOME / "secrets" / "api_key").read_text().strip()
        return lifecycle.client_of(f"http://127.0.0.1:{self.ports['http']}/v1", key)

    def _client_environment(self) -> dict[str, str]:
        """For the ``martlet`` command: the published port, and the key that `init` registered."""
        client = self.client
        return self.stack.environ | {"MARTLET_BASE_URL": str(client.base_url), "MARTLET_API_KEY": client.api_key}

    # ---- phases: each returns what it saw --------------------------------------------------------------------------

    def engine(self) -> list[str]:
        """An engine answers; one is started if none does."""
        if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0:
            return ["one ran already"]
        output("tests/e2e/docker-up.sh", "up", timeout=1200)
        return ["started by tests/e2e/docker-up.sh"]

    def build(self) -> list[str]:
        """Every image, one by one."""
        output("scripts/secrets.sh", env=self.stack.environ)
        sizes = dict(line.split(": ") for line in output("docker", "system", "df", "--format", _SIZES).splitlines())
        seen, built = [f"the build cache held {sizes['Build Cache']} before"], set()
        for stack in (self.stack, self.foreign_stack):
            config = json.loads(stack.capture("config", "--format", "json"))
            for name, service in config["services"].items():
                if "build" in service and service["image"] not in built:
                    built.add(service["image"])
                    seconds = stack.run("build", name, nice=True)
                    seen.append(f"{service['image']}: {seconds:.0f} s")
        return seen

    def rebuild(self) -> list[str]:
        """How long the images take after a change of code: in a copy of the sources, so nothing here is touched."""
        seen = []
        with tempfile.TemporaryDirectory() as scratch:
            for part in ("libs", "services", "deploy/images", "tests/e2e/images"):
                shutil.copytree(ROOT / part, Path(scratch) / part, ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copy(ROOT / ".dockerignore", scratch)
            for core in Path(scratch).glob("libs/core/src/martlet_core/ids.py"):
                core.write_text(core.read_text() + f"\n# {time.time()}\n")
            config = json.loads(self.stack.capture("config", "--format", "json"))
            for name in ("gateway", "trainer", "inference"):
                build = config["services"][name]["build"]
                args = [word for key, value in build["args"].items() for word in ("--build-arg", f"{key}={value}")]
                wheels = f"wheels={build['additional_contexts']['wheels']}"
                begun = time.monotonic()
                output(
                    *("docker", "build", "--quiet", "--file", f"{scratch}/{build['dockerfile']}"),
                    *(*args, "--build-context", wheels, "--tag", f"martlet-e2e-rebuild/{name}", scratch),
                    timeout=600,
                )
                seen.append(f"{name}, a file of libs/core changed: {time.monotonic() - begun:.1f} s")
                output("docker", "image", "rm", f"martlet-e2e-rebuild/{name}")
        return seen

    def up(self) -> list[str]:
        """Everything healthy, in the order of its needs."""
        with starts.Watch() as watch:
            self.stack.run("up", "--detach", "--wait", "--no-build")
        self.state.setdefault("starts", {})["first"] = watch.seconds
        running = self.stack.containers()
        once = {service_of(container) for container in self.stack.containers(every=True)} - set(
            map(service_of, running)
        )
        check(once == {"volumes", "init", "models"}, f"ended are {sorted(once)}")
        return [f"{len(running)} containers are healthy, {', '.join(sorted(once))} ended well"]

    def life(self) -> list[str]:
        """The stock client: upload, fine-tune, chat."""
        self.state["made"] = lifecycle.fine_tune(self.client, HOME)
        answer = lifecycle.check_answers(self.client, self.state["made"])
        made = self.state["made"]
        return [f"{made['tokens']} tokens trained", f"`{made['model']}` answers {answer.strip()!r}"]

    def isolation(self) -> list[str]:
        """Users, capabilities, ports, networks."""
        return [
            f"nobody is root, nothing can write to its image: {checks.nobody_is_root(self.stack)}",
            f"published: {checks.only_the_gateway_is_published(self.stack, self.ports)}",
            f"knocked at from another network: {checks.neighbours_reach_nothing(self.stack)}",
            f"stores and APIs: {checks.stores_lead_nowhere(self.stack)}",
        ]

    def scale(self) -> list[str]:
        """A second replica registers itself and gets its share."""
        seconds = self.stack.run("up", "--detach", "--wait", "--no-build", "--no-recreate", "--scale", "inference=2")
        lifecycle.wait_for_replicas(self.client, 2)
        with lifecycle.Load(self.client, lifecycle.MODEL) as load:
            lifecycle.at_work(self.client, 2, load)
            load.wait_for(16)
        check(load.outcomes["ok"] == load.outcomes.total(), f"{load.outcomes}: {load.errors[:3]}")
        return [f"two replicas after {seconds:.0f} s, both seen at work", f"{load.outcomes['ok']} chats, all answered"]

    def kill(self) -> list[str]:
        """A replica is killed under load: what hasn't had a token is answered by the other."""
        lifecycle.wait_for_replicas(self.client, 2)
        with lifecycle.Load(self.client, self.state["made"]["model"]) as load:
            # Requests go to who has the adapter: often that is one replica alone, and the other must load it then.
            host = lifecycle.at_work(self.client, 1, load).pop().rpartition(":")[0]
            (victim,) = [one for one in self.stack.containers("inference") if one["Id"].startswith(host)]
            output("docker", "kill", victim["Id"])
            load.wait_for(load.outcomes.total() + 64)
        check(load.outcomes["failed"] == 0, f"{load.outcomes}: {load.errors[:5]}")
        seconds = lifecycle.wait_for_replicas(self.client, 1)
        self.stack.run("up", "--detach", "--wait", "--no-build", "--no-recreate", "--scale", "inference=1")
        return [
            f"{load.outcomes['ok']} chats answered, {load.outcomes['cut']} cut after their first token, 0 failed before it",
            f"off the list {seconds:.0f} s after the load ended",
        ]

    def workers(self) -> list[str]:
        """A second worker of the same queue: two jobs run at the same time."""
        seconds = self.stack.run(
            "up", "--detach", "--wait", "--no-build", "--no-recreate", "--scale", "trainer-worker=2"
        )
        lifecycle.run_two_jobs(self.client, self.state["made"]["file"])
        self.stack.run("up", "--detach", "--wait", "--no-build", "--no-recreate", "--scale", "trainer-worker=1")
        return [f"two workers after {seconds:.0f} s, two jobs seen running at once, then cancelled"]

    def swap(self) -> list[str]:
        """Another engine, by one variable: the tuned model answers the same."""
        swapped = Stack({**self.stack.environment, "MARTLET_ENGINE": SECOND_ENGINE}, self.stack.log, self.stack.files)
        seconds = swapped.run("up", "--detach", "--wait", "--no-build", "inference")
        lifecycle.wait_for_replicas(self.client, 1)
        engines = {replica["engine"] for replica in lifecycle.replicas(self.client)}
        check(engines == {SECOND_ENGINE}, f"the replicas run {engines}")
        answer = lifecycle.check_answers(self.client, self.state["made"])
        self.stack.run("up", "--detach", "--wait", "--no-build", "inference")
        lifecycle.wait_for_replicas(self.client, 1)
        return [f"{', '.join(engines)} after {seconds:.0f} s; the tuned model answers {answer.strip()!r}"]

    def foreign(self) -> list[str]:
        """A foreign evaluator in ours' place, then ours again; nothing else is touched."""
        made, before = self.state["made"], foreign.others(self.stack)
        martlet = foreign.Command(self._client_environment(), HOME / "cli")
        self.stack.run("stop", "evaluator-worker")
        waiting = foreign.create(martlet, made)  # ours has nobody to carry it out
        with starts.Watch() as watch:
            there = self.foreign_stack.run("up", "--detach", "--wait", "--no-build")
        self.state.setdefault("starts", {})["foreign"] = watch.seconds
        container = foreign.container(self.stack, "swap-evaluator")
        secret = foreign.holds_one_secret(container)
        checks.nobody_is_root(self.stack)
        token = (HOME / "secrets" / "internal_token").read_text().strip()
        job_id = foreign.create(martlet, made)
        job = foreign.wait_for(martlet, job_id)
        theirs = foreign.accuracies(job, made)
        page = foreign.report(martlet, job_id, HOME / "report")
        rules = foreign.conforms(container, token, job["spec"]["dataset"])
        back = self.stack.run("up", "--detach", "--wait", "--no-build")
        ours = foreign.accuracies(foreign.wait_for(martlet, waiting), made)
        check(ours == theirs, f"ours measures {ours}, the foreign one {theirs}")
        check(foreign.others(self.stack) == before, f"before: {before}; now: {foreign.others(self.stack)}")
        return [
            f"the foreign evaluator after {there:.0f} s, locked in as ours; {secret}",
            f"its contract's rules: {rules}",
            f"a job through the gateway: accuracy {theirs[0]:.3f} of the base model, {theirs[1]:.3f} of the tuned one, "
            f"{foreign.ROWS} rows; a report of {page} bytes",
            f"ours again after {back:.0f} s: a job that had waited in its queue measures the same",
            f"{len(before)} other containers, the gateway too, ran on untouched",
        ]

    def again(self) -> list[str]:
        """`down` and `up`: all data is there."""
        down = self.stack.run("down")
        check(
            not [kept for kept in self.stack.leftovers() if not kept.startswith("volume")], "`down` leaves containers"
        )
        with starts.Watch() as watch:
            up = self.stack.run("up", "--detach", "--wait", "--no-build")
        self.state.setdefault("starts", {}).update(again=watch.seconds, every=starts.looked_at_every(self.stack))
        unseen = {service_of(container) for container in self.stack.containers()} - set(watch.seconds)
        check(not unseen, f"nobody saw the start of {sorted(unseen)}")
        lifecycle.check_answers(self.client, self.state["made"])
        return [f"down {down:.0f} s, up {up:.0f} s; file, job and model are there and the model answers"]

    def backup(self) -> list[str]:
        """Backed up, lost, restored into nothing."""
        kept = HOME / "backup"
        shutil.rmtree(kept, ignore_errors=True)
        environ = self.stack.environ | {"COMPOSE_FILE": ":".join(self.stack.files), "COMPOSE_PROJECT_NAME": PROJECT}
        begun = time.monotonic()
        output("scripts/backup.sh", str(kept), env=environ, timeout=1200)
        seconds = time.monotonic() - begun
        size = sum(file.stat().st_size for file in kept.iterdir() if file.is_file())
        self.stack.run("down", "--volumes")
        shutil.rmtree(HOME / "secrets")
        output("scripts/restore.sh", str(kept), env=environ, timeout=1200)
        self.stack.run("up", "--detach", "--wait", "--no-build")
        lifecycle.check_answers(self.client, self.state["made"])
        shutil.rmtree(kept)
        return [f"{size / 1e6:.0f} MB in {seconds:.0f} s; restored after `down -v`, keys too, and the model answers"]

    def clean(self) -> list[str]:
        """`down -v` leaves nothing."""
        self.stack.run("down", "--volumes", "--remove-orphans")
        check(not self.stack.leftovers(), f"left are {self.stack.leftovers()}")
        return ["no container, volume or network is left"]


PHASES = (
    *("engine", "build", "rebuild", "up", "life", "isolation", "scale", "kill"),
    *("workers", "swap", "foreign", "again", "backup", "clean"),
)


def _environment(ports: Mapping[str, int]) -> dict[str, str]:
    cores = len(os.sched_getaffinity(0))
    variables = {
        "MARTLET_SECRETS_DIR": str(HOME / "secrets"),
        "MARTLET_HTTP_PORT": str(ports["http"]),
        "MARTLET_GRPC_PORT": str(ports["grpc"]),
        "MARTLET_THREADS": str(max(1, cores // 2)),  # two replicas share the cores
        "MARTLET_CODE_VERSION": output("git", "rev-parse", "--short", "HEAD").strip(),
    }
    # Where pip finds torch's CPU wheel on this machine; without one it comes from PyTorch's index.
    for place in pip_options(base_python()).get("find-links", "").split():
        if list(Path(place).glob("torch-*+cpu-*.whl")):
            variables["MARTLET_WHEELS_DIR"] = place
    return variables


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _carry_out(test: ComposeTest, names: list[str]) -> bool:
    for name in names:
        phase: Callable[[], list[str]] = getattr(test, name)
        print(f"== {name}: {(phase.__doc__ or '').splitlines()[0]}", flush=True)
        begun = time.monotonic()
        try:
            seen = phase()
        except (Failed, openai.OpenAIError, subprocess.SubprocessError) as error:
            print(f"   FAILED after {time.monotonic() - begun:.0f} s: {error}", flush=True)
            return False
        seconds = time.monotonic() - begun
        test.state["phases"][name] = {"seconds": seconds, "seen": seen}
        test.save()
        for line in seen:
            print(f"   {line}", flush=True)
        print(f"   {seconds:.0f} s", flush=True)
    return True


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phase", nargs="+", choices=PHASES, help="only these")
    parser.add_argument("--keep", action="store_true", help="take nothing down at the end")
    parser.add_argument("--registry", action="store_true", help="pull the stores' images instead of building stand-ins")
    arguments = parser.parse_args()
    if os.geteuid() != 0 and subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        print("skipped: no engine runs, and starting one needs root")
        return 77
    if not arguments.phase:
        (HOME / "state.json").unlink(missing_ok=True)
    test = ComposeTest(FILES[:2] if arguments.registry else FILES)
    names = arguments.phase or [name for name in PHASES if not (arguments.keep and name == "clean")]
    ok = _carry_out(test, list(names))
    if not ok:
        (HOME / "containers.log").write_text(test.stack.capture("logs", "--no-color", "--timestamps"))
        print(f"logs: {HOME}/containers.log, {test.stack.log}")
        if not arguments.keep and not arguments.phase:
            test.stack.run("down", "--volumes", "--remove-orphans")
        return 1
    if not arguments.phase:
        summary.write_page(test.stack, test.foreign_stack, test.state)
        summary.write_record(test.stack, test.foreign_stack, test.state)
    print("\n".join(summary.table({name: test.state["phases"][name] for name in names})))
    for name, size in summary.image_sizes(test.stack, test.foreign_stack) if "build" in names else []:
        print(f"{name}: {size:.2f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
