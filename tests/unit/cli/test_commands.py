"""Every command against a real server: what it sends, prints, and exits with."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from stoker.cli import app as cli
from stoker.client.failure import ExitCode

from .conftest import TIMELINE

Stoker = Callable[..., Result]
COMMANDS = (
    *("up", "deploy", "invoke", "chat", "logs", "list", "describe"),
    *("ps", "scale", "prewarm", "delete", "push", "init", "checkpoints", "cache"),
)


def test_help_names_every_command_without_importing_what_they_need() -> None:
    """Heavy imports are what makes a CLI slow; none may happen for `--help`."""
    code = (
        "import sys, contextlib\n"
        "from stoker.cli import app\n"
        "with contextlib.suppress(SystemExit): app(['--help'])\n"
        "heavy = {'httpx', 'pydantic', 'yaml', 'rich.console', 'torch', 'blake3', 'uvicorn'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert "HEAVY []" in out
    for command in COMMANDS:
        assert f"  {command} " in out


def test_nothing_listens_says_how_to_start_it(nowhere: str) -> None:
    result = CliRunner().invoke(cli, ["list", "--url", nowhere])
    assert result.exit_code == ExitCode.NOT_REACHABLE == 4
    assert nowhere in result.stderr
    assert "stoker up" in result.stderr
    assert "STOKER_URL" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("describe", "ghost"),
        ("scale", "ghost", "0"),
        ("delete", "-y", "ghost"),
        ("chat", "ghost", "-p", "x"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_an_unknown_function_is_exit_code_3(stoker: Stoker, arguments: tuple[str, ...]) -> None:
    result = stoker(*arguments)
    assert result.exit_code == ExitCode.NOT_FOUND == 3
    assert "no function 'ghost' is deployed" in result.stderr
    assert "stoker list" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("scale", "hello", "-1"),
        ("scale", "hello", "many"),
        ("list", "-o", "xml"),
        ("init", "x", "--template", "quine"),
        ("chat", "hello", "--temperature", "9"),
        ("nonsense",),
        ("deploy", "/nonexistent/function.yaml"),
    ],
    ids=" ".join,
)
def test_wrong_use_is_exit_code_2(stoker: Stoker, arguments: tuple[str, ...]) -> None:
    assert stoker(*arguments).exit_code == ExitCode.USAGE == 2


def test_list_shows_a_table_or_json(stoker: Stoker, fake: Any) -> None:
    fake.functions["chat"] = {
        "name": "chat",
        "state": "cold",
        "instances": 0,
        "revision": "chat-00001",
        "checkpoint_bytes": 269_060_552,
    }
    text = stoker("list")
    assert text.exit_code == 0
    heading, row = text.stdout.splitlines()
    assert heading.split()[:3] == ["FUNCTION", "STATE", "INSTANCES"]
    assert row.split()[:4] == ["chat", "cold", "0", "chat-00001"]
    assert "269 MB" in row
    assert json.loads(stoker("list", "-o", "json").stdout) == [fake.functions["chat"]]


def test_describe_ends_with_the_last_cold_start(stoker: Stoker, fake: Any) -> None:
    fake.functions["chat"] = {
        "name": "chat",
        "created_at": 1_699_963_200.0,
        "scale": {"max": 4},
        "last_startup": TIMELINE,
    }
    lines = stoker("describe", "chat").stdout.splitlines()
    assert lines[0].split() == ["name", "chat"]
    assert lines[1].split()[:2] == ["created_at", "2023-11-14"]
    assert lines[3].split() == ["max", "4"]
    assert any("cold start, first token after 112.4 ms" in line for line in lines)
    body = json.loads(stoker("describe", "chat", "-o", "json").stdout)
    assert body == fake.functions["chat"]


def test_ps_gathers_the_instances_of_all_functions(stoker: Stoker, fake: Any) -> None:
    fake.functions |= {"a": {"name": "a"}, "b": {"name": "b"}}
    rows = json.loads(stoker("ps", "-o", "json").stdout)
    assert [row["id"] for row in rows] == ["a-i1", "b-i1"]
    assert stoker("ps", "a").stdout.splitlines()[1].split()[0] == "a-i1"


def test_scale_sends_replicas(stoker: Stoker, fake: Any) -> None:
    fake.functions["a"] = {"name": "a"}
    body = json.loads(stoker("scale", "a", "3", "-o", "json").stdout)
    assert body["replicas"] == 3


def test_delete_asks_first(stoker: Stoker, fake: Any) -> None:
    fake.functions["a"] = {"name": "a"}
    assert stoker("delete", "a", input="n\n").exit_code == ExitCode.FAILED
    assert "a" in fake.functions
    assert stoker("delete", "a", input="y\n").exit_code == 0
    assert "a" not in fake.functions


def test_logs_keep_lines_whole(stoker: Stoker) -> None:
    assert stoker("logs", "a", "-f").stdout == "i1 one\u2028still one\ni1 follow=1\n"


@pytest.mark.parametrize(
    ("argument", "stdin", "printed"),
    [
        ('{"a": "ü"}', None, '{"a": "ü"}\n'),
        ("-", "[1, 2.5, null]", "1\n2.5\nnull\n"),
        ('"plain"', None, "plain\n"),
        (None, None, "{}\n"),
    ],
    ids=["value", "stdin-streamed", "text", "nothing"],
)
def test_invoke_prints_the_answer(
    stoker: Stoker, fake: Any, argument: str | None, stdin: str | None, printed: str
) -> None:
    fake.functions["a"] = {"name": "a", "state": "ready"}
    arguments = [argument] if argument else []
    result = stoker("invoke", "a", *arguments, input=stdin)
    assert (result.exit_code, result.stdout) == (0, printed)


def test_invoke_reads_a_file_and_says_where_json_ends(
    stoker: Stoker, fake: Any, tmp_path: Path
) -> None:
    fake.functions["a"] = {"name": "a", "state": "ready"}
    payload = tmp_path / "payload.json"
    payload.write_text('{"x": 1}')
    assert stoker("invoke", "a", f"@{payload}", "-o", "json").stdout == '{"x": 1}\n'
    broken = stoker("invoke", "a", "hello")
    assert broken.exit_code == ExitCode.FAILED
    assert "the payload is not JSON" in broken.stderr
    assert "cannot read" in stoker("invoke", "a", "@/nonexistent").stderr


def test_init_writes_a_function_that_deploys_and_never_overwrites(
    stoker: Stoker, fake: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "greeter"
    assert stoker("init", folder).exit_code == 0
    deployed = stoker("deploy", folder)
    assert deployed.exit_code == 0, deployed.stderr
    assert fake.manifests["greeter"]["runtime"]["handler"] == "handler.py"
    before = (folder / "handler.py").read_text()
    again = stoker("init", folder)
    assert again.exit_code == ExitCode.FAILED
    assert "nothing is ever overwritten" in again.stderr
    assert (folder / "handler.py").read_text() == before
    assert stoker("init", tmp_path / "Not A Name").exit_code == ExitCode.FAILED
    assert not (tmp_path / "Not A Name").exists()


def test_the_handler_template_runs(stoker: Stoker, tmp_path: Path) -> None:
    assert stoker("init", tmp_path / "greeter").exit_code == 0
    scope: dict[str, Any] = {}
    exec((tmp_path / "greeter" / "handler.py").read_text(), scope)
    handler = scope["Handler"]()
    handler.setup()
    assert handler.predict({"name": "Ada"}) == {"message": "Hello, Ada!"}


def test_the_chat_template_is_a_valid_manifest(stoker: Stoker, tmp_path: Path) -> None:
    from stoker.manifest import read_manifest

    assert stoker("init", tmp_path / "talk", "--template", "chat").exit_code == 0
    manifest = read_manifest(tmp_path / "talk")
    assert manifest.model is not None
    assert manifest.model.directory == "./model"
    assert manifest.scale.keep_alive == 300.0
