"""Tokenizers read ahead: once each, whoever asks, and never a stale one."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stoker_runtime.errors import CheckpointRejected
from stoker_runtime.shelf import TokenizerShelf

pytestmark = pytest.mark.model
MINILM = Path(__file__).parents[3] / ".cache" / "models" / "all-minilm-l6-v2"
FILES = ("tokenizer.json", "tokenizer_config.json")


@pytest.fixture
def checkpoint(tmp_path):
    return copy_of_minilm(tmp_path / "one")


def copy_of_minilm(folder):
    folder.mkdir()
    for name in FILES:
        shutil.copy(MINILM / name, folder / name)
    return folder


def test_a_tokenizer_is_read_once(checkpoint):
    shelf = TokenizerShelf()
    with ThreadPoolExecutor(4) as threads:
        first, *others = threads.map(shelf.get, [checkpoint] * 8)
    assert all(other is first for other in others)


def test_a_replaced_file_is_read_again(checkpoint, tmp_path):
    shelf = TokenizerShelf()
    first = shelf.get(checkpoint)
    copy_of_minilm(tmp_path / "two")
    (tmp_path / "two" / "tokenizer.json").replace(checkpoint / "tokenizer.json")
    assert shelf.get(checkpoint) is not first


def test_the_oldest_goes_when_there_are_too_many(checkpoint, tmp_path):
    shelf = TokenizerShelf(limit=1)
    first = shelf.get(checkpoint)
    shelf.get(copy_of_minilm(tmp_path / "two"))
    assert shelf.get(checkpoint) is not first


def test_a_failure_is_told_each_time_and_not_kept(checkpoint):
    shelf = TokenizerShelf()
    whole = (checkpoint / "tokenizer.json").read_bytes()
    (checkpoint / "tokenizer.json").write_bytes(b"{")
    for _ in range(2):
        with pytest.raises(CheckpointRejected):
            shelf.get(checkpoint)
    (checkpoint / "tokenizer.json").write_bytes(whole)
    assert shelf.get(checkpoint).vocab_size > 0


def test_a_blank_worker_prepares_and_an_instance_does_not(spawn_worker):
    worker = spawn_worker()
    body = {"checkpoint_paths": [str(MINILM), "/nowhere"]}
    assert worker.client.post("/prepare", json=body).status_code == 204
    worker.load(checkpoint_path=str(MINILM))
    assert worker.client.post("/prepare", json=body).status_code == 409
