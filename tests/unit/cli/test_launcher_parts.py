"""Ports, secrets, state and questions: the launcher's and the demo's small parts."""

from __future__ import annotations

import argparse
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from martlet_cli import platform_state
from martlet_cli.accuracy import first_word, load_questions
from martlet_cli.commands.platform import add_up_arguments, up_options
from martlet_cli.credentials import load_or_make
from martlet_cli.gateway import Connection
from martlet_cli.layout import Layout, read_json, write_json
from martlet_cli.platform_options import PORTS, STAGES, PlatformOptions
from martlet_cli.platform_processes import plan
from martlet_cli.ports import choose_ports
from martlet_cli.processes import start_ticks
from martlet_core.api_keys import SECRET_PATTERN
from martlet_core.errors import FailedPrecondition, InvalidArgument


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A home of its own."""
    return Layout(tmp_path, tmp_path / "home", tmp_path / "envs", tmp_path / "models")


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that something listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_every_port_is_free_and_different() -> None:
    ports = choose_ports({"http": 0, "grpc": 0}, {})
    assert set(ports) == set(PORTS)
    assert len(set(ports.values())) == len(PORTS)


def test_the_ports_of_the_last_start_are_taken_again() -> None:
    first = choose_ports({"http": 0, "grpc": 0}, {})
    assert choose_ports({}, first) == first


def test_a_port_that_was_taken_meanwhile_is_chosen_anew(taken: int) -> None:
    assert choose_ports({}, {"valkey": taken})["valkey"] != taken


def test_a_named_port_that_is_taken_is_refused(taken: int) -> None:
    with pytest.raises(FailedPrecondition, match=f"--http-port {taken}"):
        choose_ports({"http": taken}, {})
    with pytest.raises(FailedPrecondition, match="1 to 55535"):
        choose_ports({"s3": 60000}, {})


def test_secrets_are_made_once_and_for_their_owner(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    made = load_or_make(path)
    assert load_or_make(path) == made
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SECRET_PATTERN.fullmatch(made.api_key)
    path.chmod(0o644)
    with pytest.raises(FailedPrecondition, match="chmod 600"):
        load_or_make(path)


def test_secrets_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "secrets.json", {"s3_access_key": "x"}, mode=0o600)
    with pytest.raises(FailedPrecondition, match="isn't whole"):
        load_or_make(tmp_path / "secrets.json")


def test_the_plan_of_a_platform(layout: Layout) -> None:
    ports = choose_ports({"http": 0, "grpc": 0}, {})
    platform = plan(layout, PlatformOptions(), load_or_make(layout.secrets_file), ports)
    specs = {spec.name: spec for spec in platform.specs}
    assert list(specs) == [
        "valkey",
        "seaweedfs",
        "trainer",
        "trainer-worker",
        "quantizer",
        "quantizer-bnb-worker",
        "quantizer-llmcompressor-worker",
        "quantizer-gguf-worker",
        "evaluator",
        "evaluator-worker",
        "gateway",
        "gateway-worker",
        "base-model",
        "inference",
    ]
    assert specs["inference"].needs == ("gateway", "base-model")
    assert specs["trainer"].argv[0] == str(layout.python("trainer"))
    told = specs["inference"].environ
    assert told["MARTLET_GATEWAY_ADDRESS"] == f"127.0.0.1:{ports['grpc']}"
    assert told["MARTLET_MODEL_DIR"] == str(layout.models / "smollm2-135m-instruct")
    secret = load_or_make(layout.secrets_file).s3_secret_key
    assert not any(secret in word for spec in platform.specs for word in spec.argv), "command lines are for all to read"


def test_trackers_have_a_process_and_it_alone_has_their_keys(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    parser = argparse.ArgumentParser()
    add_up_arguments(parser)
    options = up_options(parser.parse_args(["--trackers", "tensorboard,wandb"]))
    assert "trainer-tracking" in options.services
    platform = plan(layout, options, load_or_make(layout.secrets_file), choose_ports({"http": 0, "grpc": 0}, {}))
    specs = {spec.name: spec for spec in platform.specs}
    tracker = specs["trainer-tracker"]
    assert tracker.argv == (str(layout.python("trainer-tracking")), "-m", "martlet_trainer", "track")
    assert tracker.environ["MARTLET_TENSORBOARD_DIR"] == str(layout.home / "tensorboard")
    offered = {name for name, spec in specs.items() if spec.environ.get("MARTLET_TRACKERS") == "tensorboard,wandb"}
    assert offered == {"trainer", "trainer-tracker"}
    assert [name for name, spec in specs.items() if "WANDB_API_KEY" in spec.environ] == ["trainer-tracker"]
    with pytest.raises(InvalidArgument, match="'swanlab' isn't known"):
        up_options(parser.parse_args(["--trackers", "swanlab"]))


def test_a_model_of_the_hub_is_left_to_inference(layout: Layout) -> None:
    options = PlatformOptions(model="org/model@c1")
    options.check()
    platform = plan(layout, options, load_or_make(layout.secrets_file), choose_ports({"http": 0, "grpc": 0}, {}))
    specs = {spec.name: spec for spec in platform.specs}
    assert "base-model" not in specs
    assert specs["inference"].needs == ("gateway",)
    assert specs["inference"].environ["MARTLET_MODEL"] == "org/model@c1"
    assert "MARTLET_MODEL_DIR" not in specs["inference"].environ


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("org/model", "org/model@<commit>"),
        ("ft:base:acme::1", "when a request names them"),
        ("file:///models/x", "org/model@commit"),
        ("", "org/model@commit"),
    ],
)
def test_a_model_that_can_not_be_had_is_refused_before_anything_starts(model: str, said: str) -> None:
    parser = argparse.ArgumentParser()
    add_up_arguments(parser)
    with pytest.raises(InvalidArgument) as caught:
        up_options(parser.parse_args(["--model", model]))
    assert caught.value.violations[0].field == "--model"
    assert said in caught.value.message


def test_existing_servers_are_used_instead(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARTLET_S3_ACCESS_KEY", "theirs")
    servers = {"redis_url": "redis://elsewhere:1/0", "s3_endpoint": "http://elsewhere:2"}
    options = PlatformOptions(**servers, engine="echo", stages=("trainer",))
    platform = plan(layout, options, load_or_make(layout.secrets_file), choose_ports({"http": 0, "grpc": 0}, {}))
    assert [spec.name for spec in platform.specs] == [
        "trainer",
        "trainer-worker",
        "gateway",
        "gateway-worker",
        "inference",
    ]
    assert platform.settings["MARTLET_REDIS_URL"] == "redis://elsewhere:1/0"
    assert platform.settings["MARTLET_S3_ACCESS_KEY"] == "theirs"


def test_stages_and_families_have_processes_of_their_own(layout: Layout) -> None:
    options = PlatformOptions(engine="echo", stages=STAGES, families=("bnb", "gguf"))
    options.check()
    ports = choose_ports({"http": 0, "grpc": 0}, {})
    specs = {s.name: s for s in plan(layout, options, load_or_make(layout.secrets_file), ports).specs}
    assert {"quantizer", "quantizer-bnb-worker", "quantizer-gguf-worker", "evaluator", "evaluator-worker"} < set(specs)
    assert specs["quantizer-gguf-worker"].argv[0] == str(layout.python("quantizer-gguf"))
    assert specs["quantizer-gguf-worker"].environ["MARTLET_QUANTIZER_FAMILY"] == "gguf"
    assert specs["gateway"].environ["MARTLET_EVALUATOR_ADDRESS"] == f"127.0.0.1:{ports['evaluator']}"
    assert options.services == (
        "gateway", "trainer", "quantizer", "evaluator", "quantizer-bnb", "quantizer-gguf", "inference"
    )  # fmt: skip


def test_the_engine_brings_its_environment(layout: Layout) -> None:
    parser = argparse.ArgumentParser()
    add_up_arguments(parser)
    options = up_options(parser.parse_args(["--engine", "transformers"]))
    ports = choose_ports({"http": 0, "grpc": 0}, {})
    specs = {s.name: s for s in plan(layout, options, load_or_make(layout.secrets_file), ports).specs}
    assert specs["inference"].environ["MARTLET_ENGINE"] == "transformers"
    assert specs["inference"].argv[0] == str(layout.python("inference-transformers"))
    named = up_options(parser.parse_args(["--engine", "transformers", "--environment", "inference=dev"]))
    assert named.environment("inference") == "dev"
    assert PlatformOptions().environment("inference") == "inference"


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        (PlatformOptions(stages=("trainer", "quantiser")), "--stages"),
        (PlatformOptions(stages=("evaluator",)), "--stages"),
        (PlatformOptions(families=("bnb", "exl2")), "--quantizer-families"),
    ],
)
def test_stages_that_are_not_known_are_refused(options: PlatformOptions, flag: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        options.check()
    assert caught.value.violations[0].field == flag


@pytest.mark.parametrize("engine", ["vllm", "transformers", "echo"])
def test_what_the_launcher_sets_itself_is_on_the_page(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    page = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
    ports = choose_ports({"http": 0, "grpc": 0}, {})
    options = PlatformOptions(engine=engine, stages=STAGES)
    platform = plan(layout, options, load_or_make(layout.secrets_file), ports)
    names = {name for spec in platform.specs for name in spec.environ if name.startswith("MARTLET_")}
    for name in names:
        monkeypatch.setenv(name, "mine")
    platform = plan(layout, options, load_or_make(layout.secrets_file), ports)
    services = [spec for spec in platform.specs if spec.needs or spec.once]
    changed = {name for spec in services for name in names if spec.environ.get(name) != "mine"}
    assert changed, "the test looks at nothing"
    assert {name for name in changed if f"`{name}`" not in page} == set()


def test_status_of_a_launcher_that_is_gone(layout: Layout) -> None:
    process = {"name": "gateway", "state": "ready", "pid": os.getpid(), "start_ticks": 1, "port": 8000}
    process |= {"restarts": 0, "ready_seconds": 1.0, "started_at": 0.0}
    launcher = {"pid": os.getpid(), "start_ticks": start_ticks(os.getpid()) + 1}
    write_json(layout.state_file, {"phase": "up", "launcher": launcher, "processes": {"gateway": process}})
    status = platform_state.status(layout)
    assert status["phase"] == "down", "the pid is someone else's now"
    assert status["processes"][0]["state"] == "stopped"
    assert not platform_state.stop(layout, lambda line: None)


def test_the_log_of_a_process(layout: Layout) -> None:
    layout.logs.mkdir(parents=True)
    (layout.logs / "gateway.log").write_text("".join(f"line {n}\n" for n in range(1000)))
    assert platform_state.tail(layout, "gateway", 2) == ["line 998", "line 999"]
    with pytest.raises(FailedPrecondition, match="known are gateway"):
        platform_state.tail(layout, "gatewya", 2)


def test_connection_from_file_and_environment(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MARTLET_BASE_URL", raising=False)
    monkeypatch.delenv("MARTLET_API_KEY", raising=False)
    with pytest.raises(FailedPrecondition, match="martlet up"):
        Connection.discover(layout)
    write_json(layout.client_file, {"base_url": "http://127.0.0.1:1/v1", "api_key": "mk-x"})
    assert Connection.discover(layout) == Connection("http://127.0.0.1:1/v1", "mk-x")
    monkeypatch.setenv("MARTLET_BASE_URL", "http://elsewhere:2/")
    assert Connection.discover(layout).base_url == "http://elsewhere:2/v1"


def test_written_files_are_never_half_there(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(tmp_path / "state.json", {"x": object()})
    assert list(tmp_path.iterdir()) == []
    assert read_json(tmp_path / "state.json") == {}


@pytest.mark.parametrize(
    ("text", "word"), [("Yes", "yes"), (" no.", "no"), ("**Yes**, it is", "yes"), ("", ""), ("...", "")]
)
def test_first_word(text: str, word: str) -> None:
    assert first_word(text) == word


def test_questions_and_the_line_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    good = '{"messages": [{"role": "user", "content": "a\u2028b"}, {"role": "assistant", "content": "yes"}]}\n'
    path.write_text(good, encoding="utf-8")
    (question,) = load_questions(path)
    assert question.messages == ({"role": "user", "content": "a\u2028b"},)
    assert question.answer == "yes"
    path.write_text(good + '{"messages": []}\n', encoding="utf-8")
    with pytest.raises(InvalidArgument, match="line 2"):
        load_questions(path)
