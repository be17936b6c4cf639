"""The examples and the commands, as a newcomer uses them."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from e2e.conftest import ROOT, Up

pytestmark = pytest.mark.model


def stoker(up: Up, *arguments: str, cwd: Path | None = None) -> str:
    """Runs the command and returns what it printed; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "stoker.cli", *arguments],
        env=os.environ | {"STOKER_URL": up.local.url},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_embeddings_tell_like_from_unlike(up: Up) -> None:
    up.deploy(ROOT / "functions" / "embeddings")
    texts = ["a cat sleeps on the sofa", "a kitten naps on the couch", "stock prices fell"]
    with openai.OpenAI(base_url=f"{up.local.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.embeddings.create(model="embeddings", input=texts)
    cat, kitten, stocks = (item.embedding for item in answer.data)
    assert math.isclose(sum(x * x for x in cat), 1.0, rel_tol=1e-3)

    def alike(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert alike(cat, kitten) > 0.5 > alike(cat, stocks)
    assert answer.usage.prompt_tokens > len(texts)


def test_the_classifier_and_echo_answer(up: Up) -> None:
    up.deploy(ROOT / "functions" / "classifier")
    up.deploy(ROOT / "functions" / "echo")
    answer = up.invoke("classifier", {"text": "Where is the railway station, please?"})
    assert answer.status_code == 200, answer.text
    assert "en" in json.dumps(answer.json())
    assert up.invoke("echo", {"any": ["json", 1]}).json() == {"any": ["json", 1]}
    streamed = up.invoke("echo", {"stream": 3})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert streamed.text.count("data: ") == 4  # three values and [DONE]


def test_a_function_from_init_to_delete_on_the_command_line(up: Up, tmp_path: Path) -> None:
    stoker(up, "init", "newcomer", cwd=tmp_path)
    deployed = json.loads(stoker(up, "deploy", str(tmp_path / "newcomer"), "-o", "json"))
    assert deployed["revision"] == "newcomer-00001"
    assert "unchanged" in stoker(up, "deploy", str(tmp_path / "newcomer"))
    invoked = stoker(up, "invoke", "newcomer", '{"name": "Ada"}')
    assert invoked.strip()
    listed = {f["name"]: f for f in json.loads(stoker(up, "list", "-o", "json"))}
    assert listed["newcomer"]["state"] == "ready"
    assert "newcomer-00001" in stoker(up, "ps", "newcomer")
    stoker(up, "logs", "newcomer")
    stoker(up, "scale", "newcomer", "0")
    assert up.instances("newcomer") == []
    stoker(up, "prewarm", "newcomer")
    assert len(up.instances("newcomer")) == 1
    assert "newcomer" in stoker(up, "describe", "newcomer")
    stoker(up, "delete", "newcomer", "-y")
    assert up.http.get("/v1/functions/newcomer").status_code == 404


def test_a_pushed_checkpoint_is_deployed_by_its_name(up: Up, smollm2: Path, tmp_path: Path) -> None:
    stoker(up, "push", str(smollm2), "smollm2")
    (tmp_path / "function.yaml").write_text("name: named\nmodel: {uri: store://smollm2}\n")
    stoker(up, "deploy", str(tmp_path))
    answer = stoker(
        up, "chat", "named", "--prompt", "What is the capital of France?", "--temperature", "0"
    )
    assert "Paris" in answer


def test_the_demo_plays_to_its_end() -> None:
    """What `make demo` runs once everything is set up."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "demo.py"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Paris" in done.stdout
    for word in ("provision", "prefill", "first cold start", "second cold start", "warm"):
        assert word in done.stdout
