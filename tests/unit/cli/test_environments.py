"""Environments: what pip's configuration becomes, when an environment is made anew, and what is refused."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from martlet_cli import environments, pip_config
from martlet_cli.environments import Environment
from martlet_cli.layout import Layout
from martlet_core.errors import FailedPrecondition, InvalidArgument

LISTING = """:env:.find-links='/env/wheels'
global.cert='/etc/ca.crt'
global.extra-index-url='https://one.example/simple\\nhttps://two.example/simple'
global.find-links='/file/wheels'
install.index-url='https://main.example/simple'
search.ignored='x'
"""


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A repository with one environment, ``tool``."""
    (tmp_path / "libs/tool").mkdir(parents=True)
    (tmp_path / "libs/tool/pyproject.toml").write_text("[project]\nname = 'tool'\n")
    (tmp_path / "tool.cpu.txt").write_text("tool==1\n")
    known = {"tool": Environment(("tool.{accelerator}.txt",), ("libs/tool",), "a test")}
    monkeypatch.setattr(environments, "ENVIRONMENTS", known)
    monkeypatch.setenv("MARTLET_ACCELERATOR", "cpu")
    return Layout(tmp_path, tmp_path / "home", tmp_path / "envs", tmp_path / "models")


@pytest.fixture
def installs(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Counts installations instead of making them: what is under test is when they happen."""
    made: list[str] = []

    def install(layout: Layout, name: str, kind: str, say: object) -> None:
        python = layout.python(name)
        python.parent.mkdir(parents=True, exist_ok=True)
        python.touch()
        made.append(name)

    monkeypatch.setattr(environments, "_install", install)
    return made


def quiet(line: str) -> None:
    """Takes progress lines."""


def test_pip_config_sections_and_literals() -> None:
    options = pip_config.parse_config_list(LISTING)
    assert options["find-links"] == "/env/wheels", "the environment goes before the file"
    assert options["index-url"] == "https://main.example/simple"
    assert "ignored" not in options


def test_uv_gets_what_pip_has() -> None:
    environ = pip_config.uv_environment(pip_config.parse_config_list(LISTING), {"HOME": "/h"})
    assert environ["UV_DEFAULT_INDEX"] == "https://main.example/simple"
    assert environ["UV_INDEX"] == "https://one.example/simple https://two.example/simple"
    assert environ["UV_FIND_LINKS"] == "/env/wheels"
    assert environ["SSL_CERT_FILE"] == "/etc/ca.crt"
    assert environ["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert environ["HOME"] == "/h"


def test_uv_variables_that_are_set_win() -> None:
    environ = pip_config.uv_environment({"find-links": "/pip"}, {"UV_FIND_LINKS": "/mine"})
    assert environ["UV_FIND_LINKS"] == "/mine"


@pytest.mark.parametrize(("pip", "expected"), [({}, "https://torch.example"), ({"find-links": "/wheels"}, None)])
def test_torch_index_only_without_find_links(pip: dict[str, str], expected: str | None) -> None:
    environ = pip_config.uv_environment(pip, {}, torch_index="https://torch.example")
    assert environ.get("UV_INDEX") == expected


def test_several_find_links_become_uvs_list() -> None:
    assert pip_config.uv_environment({"find-links": "/a /b\n/c"}, {})["UV_FIND_LINKS"] == "/a,/b,/c"


def test_made_once_and_again_when_the_lock_changes(layout: Layout, installs: list[str]) -> None:
    environments.sync(layout, "tool", say=quiet)
    environments.sync(layout, "tool", say=quiet)
    assert installs == ["tool"]
    (layout.root / "tool.cpu.txt").write_text("tool==2\n")
    assert environments.describe(layout)[0]["state"] == "stale"
    environments.sync(layout, "tool", say=quiet)
    assert installs == ["tool", "tool"]
    assert environments.describe(layout)[0]["state"] == "ready"


def test_made_again_when_the_project_file_changes_or_by_force(layout: Layout, installs: list[str]) -> None:
    environments.sync(layout, "tool", say=quiet)
    (layout.root / "libs/tool/pyproject.toml").write_text("[project]\nname = 'tool'\nscripts = {}\n")
    environments.sync(layout, "tool", say=quiet)
    environments.sync(layout, "tool", say=quiet, force=True)
    assert len(installs) == 3


def test_failed_installation_leaves_no_stamp(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: list[str], environ: object, name: str, say: object) -> None:
        if argv[1] == "venv":
            layout.python(name).parent.mkdir(parents=True)
            layout.python(name).touch()
            return
        raise FailedPrecondition("no network")

    monkeypatch.setattr(environments, "_run", fail)
    with pytest.raises(FailedPrecondition, match="no network"):
        environments.sync(layout, "tool", say=quiet)
    assert not environments.is_current(layout, "tool", "cpu")


def test_two_at_once_install_once(layout: Layout, installs: list[str]) -> None:
    said: list[str] = []
    with environments.exclusively(layout, "tool", quiet):
        waiter = threading.Thread(target=environments.sync, args=(layout, "tool"), kwargs={"say": said.append})
        waiter.start()
        # The waiter blocks on the lock; while it does, this thread makes the environment.
        environments._install(layout, "tool", "cpu", quiet)
        environments.write_json(
            layout.environments / "tool" / environments.STAMP, environments.stamp_of(layout, "tool", "cpu")
        )
    waiter.join(timeout=20)
    assert installs == ["tool"]


def test_missing_lock_names_the_file(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARTLET_ACCELERATOR", "cuda")
    with pytest.raises(FailedPrecondition, match=r"tool\.cuda\.txt is missing"):
        environments.sync(layout, "tool", say=quiet)


def test_unknown_names_and_values_are_refused(layout: Layout) -> None:
    with pytest.raises(InvalidArgument, match="known are tool"):
        environments.sync(layout, "tolo", say=quiet)
    with pytest.raises(InvalidArgument, match="must be cpu or cuda"):
        environments.accelerator({"MARTLET_ACCELERATOR": "rocm"})


def test_another_python_is_refused_with_the_remedy() -> None:
    with pytest.raises(FailedPrecondition, match=r"Python 3\.12 .*MARTLET_PYTHON"):
        environments.check_python((3, 12))
    environments.check_python((3, 11))


def test_failing_uv_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="exit code 3"):
        environments._run(["sh", "-c", "echo broken; exit 3"], {"PATH": "/bin:/usr/bin"}, "tool", quiet)


def test_packages_built_from_source_belong_to_the_environment(
    layout: Layout, installs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = Environment(("tool.{accelerator}.txt",), ("libs/tool",), "a test", ("built.txt",))
    monkeypatch.setattr(environments, "ENVIRONMENTS", {"tool": tool})
    with pytest.raises(FailedPrecondition, match=r"built\.txt is missing"):
        environments.sync(layout, "tool", say=quiet)
    (layout.root / "built.txt").write_text("sdist==1\n")
    environments.sync(layout, "tool", say=quiet)
    environments.sync(layout, "tool", say=quiet)
    (layout.root / "built.txt").write_text("sdist==2\n")
    environments.sync(layout, "tool", say=quiet)
    assert installs == ["tool", "tool"]
