"""Brings files to the platform's checkpoint store: hash, offer, send what is missing, commit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from blake3 import blake3

from stoker.client.http import Json, Platform
from stoker.client.progress import Report
from stoker.errors import BadRequest, InstanceLost
from stoker.local_files import LocalFile

PIECE_BYTES = 4 << 20  # read, hashed and sent at a time
CHECKPOINT, SOURCE = "checkpoint", "source"


def push(
    platform: Platform,
    files: Iterable[LocalFile],
    *,
    kind: str,
    name: str | None = None,
    report: Report,
) -> Json:
    """Uploads files as one artifact (`digest`, `size_bytes`, ...) and returns it.

    Only what the platform lacks is sent; nothing when it knows all of it. Raises `BadRequest`
    when a file cannot be read or changes meanwhile, and what the platform refuses with.
    """
    files = tuple(files)
    digests = _digests(files, report)
    offer: list[Json] = [
        {"path": file.path, "size_bytes": file.size_bytes, "blake3": digest}
        for file, digest in zip(files, digests, strict=True)
    ]
    upload = platform.open_upload(offer, kind, name)
    if upload.id is None:
        assert upload.artifact is not None
        return upload.artifact
    _send(platform, upload.id, [f for f in files if f.path in set(upload.missing)], report)
    return followed(platform.commit(upload.id, name), report)


def followed(events: Iterable[Json], report: Report) -> Json:
    """Reports the progress of long work; the artifact that it is about."""
    for event in events:
        if "artifact" in event:
            artifact: Json = event["artifact"]
            return artifact
        report(event["stage"], event["bytes_done"], event["bytes_total"])
    raise InstanceLost("the platform ended the work without an artifact")


def _digests(files: tuple[LocalFile, ...], report: Report) -> list[str]:
    total = sum(file.size_bytes for file in files)
    done = 0
    digests = []
    for file in files:
        hasher = blake3(max_threads=blake3.AUTO)
        for piece in _pieces(file):
            hasher.update(piece)
            done += len(piece)
            report("hashing", done, total)
        digests.append(hasher.hexdigest())
    return digests


def _send(platform: Platform, upload: str, files: list[LocalFile], report: Report) -> None:
    total = sum(file.size_bytes for file in files)
    sent = 0

    def counted(file: LocalFile) -> Iterator[bytes]:
        nonlocal sent
        for piece in _pieces(file):
            yield piece
            sent += len(piece)
            report("uploading", sent, total)

    for file in files:
        platform.send_file(upload, file.path, counted(file), file.size_bytes)


def _pieces(file: LocalFile) -> Iterator[bytes]:
    """The file's bytes, exactly `size_bytes` of them: the offer has promised as many."""
    left = file.size_bytes
    try:
        with file.location.open("rb") as stream:
            while piece := stream.read(min(PIECE_BYTES, left)):
                left -= len(piece)
                yield piece
            grew = bool(stream.read(1))
    except OSError as error:
        raise BadRequest(f"cannot read {file.location}: {error.strerror}", param="path") from error
    if left or grew:
        raise BadRequest(f"{file.location} changed while it was read; try again", param="path")
