"""A revision before it has a number: what a deploy asks for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import orjson
from pydantic import TypeAdapter

from stoker.domain import (
    Artifact,
    CachePolicy,
    Digest,
    FunctionName,
    Resources,
    RuntimeSpec,
    ScalePolicy,
    StartupPolicy,
)


@dataclass(frozen=True, slots=True)
class RevisionDraft:
    """The content of a revision, by which a deploy is idempotent."""

    function: FunctionName
    checkpoint: Artifact | None = None
    source: Artifact | None = None
    runtime: RuntimeSpec = field(default_factory=RuntimeSpec)
    resources: Resources = field(default_factory=Resources)
    scale: ScalePolicy = field(default_factory=ScalePolicy)
    startup: StartupPolicy = field(default_factory=StartupPolicy)
    env: dict[str, str] = field(default_factory=dict)
    cache: CachePolicy = field(default_factory=CachePolicy)


@dataclass(frozen=True, slots=True)
class Upload:
    """The function.yaml of a folder of the bucket, and the checkpoint that the folder became. The
    same text put again is another one."""

    folder: str
    etag: str
    modified_at: float  # Unix seconds
    digest: Digest


@dataclass(frozen=True, slots=True)
class UploadDeploy:
    """What became of an upload."""

    upload: Upload
    function: str | None = None  # that was deployed by the folder last
    revision: str | None = None
    reason: str | None = None  # why it was not, this time


_DRAFT = TypeAdapter(RevisionDraft)


def content_digest(draft: RevisionDraft) -> str:
    """SHA-256 over the draft's canonical JSON, as "sha256:<64 hex digits>".

    Of an artifact only the digest counts: the name it was pushed under and the time do not
    change what runs.
    """
    content = _DRAFT.dump_python(draft, mode="json")
    if draft.cache == CachePolicy():
        del content["cache"]  # so revisions of before there was one stay what they are
    for kind in ("checkpoint", "source"):
        if content[kind] is not None:
            content[kind] = content[kind]["digest"]
    canonical = orjson.dumps(content, option=orjson.OPT_SORT_KEYS)
    return f"sha256:{hashlib.sha256(canonical).hexdigest()}"
