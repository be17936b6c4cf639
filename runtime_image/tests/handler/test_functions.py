"""The example functions, loaded as they are in the repository."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stoker_runtime.contract import InvokeDone, PhaseEvent

FUNCTIONS = Path(__file__).parents[3] / "functions"


@pytest.fixture(scope="module")
def classifier(spawn_for_session):
    worker = spawn_for_session()
    events = worker.load_handler(FUNCTIONS / "classifier", options={"threshold": 0.4})
    return worker, events


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Where is the nearest library?", "en"),
        ("Wo ist die nächste Bibliothek?", "de"),
        ("Où est la bibliothèque la plus proche ?", "fr"),
        ("¿Dónde está la biblioteca más cercana?", "es"),
        ("Dov'è la biblioteca più vicina?", "it"),
        ("12345", "unknown"),
    ],
)
def test_the_classifier_knows_unseen_sentences(classifier, text, label):
    worker, _ = classifier
    answer, _ = worker.invoke({"text": text})
    assert answer.value["label"] == label
    assert abs(sum(answer.value["scores"].values()) - 1) < 1e-3


def test_the_classifiers_tensors_are_counted(classifier):
    _, (_, init, _) = classifier
    assert isinstance(init, PhaseEvent)
    assert init.bytes == (FUNCTIONS / "classifier" / "weights.safetensors").stat().st_size
    assert init.tier is not None
    assert init.details["tensors_ms"] > 0


def test_the_classifiers_weights_are_made_by_their_script(tmp_path):
    for file in (FUNCTIONS / "classifier").iterdir():
        if file.is_file() and file.name != "weights.safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    subprocess.run([sys.executable, str(tmp_path / "make_weights.py")], check=True)
    made, kept = _weights(tmp_path), _weights(FUNCTIONS / "classifier")
    assert made.shape == kept.shape == (5, 4096)
    assert (made - kept).abs().max() < 1e-3


def _weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "weights.safetensors")["weight"]


def test_echo_gives_back_or_streams(spawn_worker):
    worker = spawn_worker()
    worker.load_handler(FUNCTIONS / "echo")
    assert worker.invoke({"hello": "world"})[0].value == {"hello": "world"}
    *values, done = worker.invoke({"stream": 3})
    assert [value.value for value in values] == [{"number": n} for n in range(3)]
    assert isinstance(done, InvokeDone)
    [failed] = worker.invoke({"stream": -1})
    assert failed.error.message.startswith("ValueError: stream must be")
