"""The repository keeps its own promises: imports, documents, commands and words."""

from __future__ import annotations

import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import stoker

ROOT = Path(__file__).resolve().parents[2]
TEXT_SUFFIXES = {".py", ".rs", ".md", ".toml", ".yaml", ".yml", ".txt", ".json", ".sh", ".lock"}
# Assembled so that this file does not contain what it forbids.
FORBIDDEN = re.compile(
    "|".join(
        re.escape(first + second)
        for first, second in (
            ("pypi", ".org"), ("pythonhosted", ".org"), ("static.crates", ".io"),
            ("registry.npmjs", ".org"), ("/work", "/main"), ("/work", "/.library"),
            ("farm", "-bench"), ("farm", "-studio"),
        )
    )
)  # fmt: skip


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name]


def test_the_control_plane_imports_no_inference_library() -> None:
    """Every module of `stoker` is imported in a fresh process; none may bring torch along."""
    modules = [m.name for m in pkgutil.walk_packages(stoker.__path__, "stoker.")]
    assert "stoker.gateway.app" in modules
    program = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    imported = set(done.stdout.split())
    assert "stoker" in imported
    assert imported.isdisjoint({"torch", "transformers", "tokenizers", "numpy", "safetensors"})


def test_there_is_no_package_named_platform() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists(), "it would shadow the standard library"


def test_lifecycles_are_documented_as_they_are() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "lifecycles.py"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.rstrip("\n") == (ROOT / "docs" / "lifecycles.md").read_text().rstrip("\n"), (
        "run `python scripts/lifecycles.py --write`"
    )


def test_every_make_target_that_documents_name_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, flags=re.MULTILINE))
    named = {
        (path.relative_to(ROOT), target)
        for path in tracked()
        if path.suffix == ".md"
        for target in re.findall(r"`make ([a-z-]+)`", path.read_text())
    }
    assert ("README.md", "demo") in {(str(path), target) for path, target in named}
    missing = {entry for entry in named if entry[1] not in targets}
    assert missing == set()


def test_links_between_documents_lead_somewhere() -> None:
    broken = [
        (str(path.relative_to(ROOT)), link)
        for path in tracked()
        if path.suffix == ".md"
        for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", path.read_text())
        if not (path.parent / link).exists()
    ]
    assert broken == []


def test_ci_runs_exactly_the_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    commands = [line for line in script.splitlines() if line and not line.startswith("#")]
    assert commands[-1] == "exec make test"


def test_no_machine_of_ours_and_no_registry_is_named() -> None:
    found = [
        (str(path.relative_to(ROOT)), match.group())
        for path in tracked()
        if path.suffix in TEXT_SUFFIXES or path.name in ("Makefile", "run")
        for match in FORBIDDEN.finditer(path.read_text(errors="replace"))
    ]
    assert found == []


def test_no_large_file_is_tracked() -> None:
    large = {str(p.relative_to(ROOT)): p.stat().st_size for p in tracked() if p.is_file()}
    assert {name: size for name, size in large.items() if size > 512 << 10} == {}


def test_no_source_file_holds_more_than_one_can_read() -> None:
    """Files stay within 400 lines: one noun or stage each."""
    long = {
        str(p.relative_to(ROOT)): lines
        for p in tracked()
        if p.suffix in (".py", ".rs") and "tests" not in p.parts and p.is_file()
        if (lines := len(p.read_text().splitlines())) > 400
    }
    assert long == {}
