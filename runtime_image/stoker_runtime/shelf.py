"""Tokenizers that were read before the load that needs them.

Parsing a vocabulary takes longer than attaching the weights of a resident checkpoint, and it keeps
the interpreter's lock, so it cannot be hidden behind them. A blank worker has the time.
"""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from stoker_runtime.contract import MAX_PREPARED
from stoker_runtime.tokenizer import TOKENIZER_FILE, TextTokenizer


class _Key(NamedTuple):
    """A file as it was: a replaced one is not the one that was read."""

    path: Path
    inode: int
    size_bytes: int
    modified_ns: int


class TokenizerShelf:
    """Reads each tokenizer once, whoever asks first; safe to use from several threads."""

    def __init__(self, limit: int = MAX_PREPARED) -> None:
        self._limit = limit
        self._lock = Lock()
        self._read: OrderedDict[_Key, Future[TextTokenizer]] = OrderedDict()

    def get(self, checkpoint: Path) -> TextTokenizer:
        """The checkpoint's tokenizer: at once if it was read, else it is read now, or waited for.

        Raises CheckpointRejected as `TextTokenizer.load` does; a failure is not remembered.
        """
        key = _key(checkpoint)
        if key is None:
            return TextTokenizer.load(checkpoint)  # which says what is missing
        with self._lock:
            known = self._read.get(key)
            reading: Future[TextTokenizer] = known or Future()
            self._read[key] = reading
            self._read.move_to_end(key)
            while len(self._read) > self._limit:
                self._read.popitem(last=False)
        if known is not None:
            return known.result()
        try:
            reading.set_result(TextTokenizer.load(checkpoint))
        except BaseException as error:
            with self._lock:
                self._read.pop(key, None)
            reading.set_exception(error)
            raise
        return reading.result()


def _key(checkpoint: Path) -> _Key | None:
    try:
        found = (checkpoint / TOKENIZER_FILE).stat()
    except OSError:
        return None
    return _Key(checkpoint, found.st_ino, found.st_size, found.st_mtime_ns)
