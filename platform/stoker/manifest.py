"""function.yaml: what a user may write, checked whole before anything is done with it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from stoker.domain import (
    Artifact,
    CachePolicy,
    FunctionName,
    Resources,
    RuntimeSpec,
    ScalePolicy,
    StartupPolicy,
    Tier,
)
from stoker.errors import InvalidManifest
from stoker.manifest_problems import MAX_PROBLEMS, Problem, drop_unsupported, explain, invalid
from stoker.quantities import parse_duration_s, parse_size_bytes
from stoker.store.draft import RevisionDraft
from stoker_runtime.contract import EngineArgs, EngineName

MANIFEST_NAME: Final = "function.yaml"
MAX_MANIFEST_BYTES = 256 << 10
MAX_INSTANCES = 64
MAX_CONCURRENCY = 4096
MAX_KEEP_ALIVE_S = 30 * 86400.0
MAX_STARTUP_TIMEOUT_S = 86400.0
MIN_MEMORY_BYTES = 64 << 20
MAX_ENV_VARIABLES = 256
MAX_COPIES = 1024

# RFC 1123 label: what DNS, Kubernetes and a path segment all accept.
LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
NAME_RULE = "1 to 63 lower-case letters, digits and '-', not beginning or ending with '-'"
_STORED = re.compile(r"store://(?P<reference>[^@/]+(@(blake3:)?[0-9a-f]{64})?)")
_UPLOADED = re.compile(r"s3://models/(?P<folder>[^/@]+)/?")
_DIGEST = re.compile(r"blake3:[0-9a-f]{64}")
_SCHEME = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

DurationS = Annotated[float, BeforeValidator(parse_duration_s)]
SizeBytes = Annotated[int, BeforeValidator(parse_size_bytes)]
DigestText = Annotated[str, StringConstraints(pattern=r"^blake3:[0-9a-f]{64}$")]


# Tiers that a node can be told to keep a checkpoint in.
KeptTier = Literal["ssd", "dram"]


class _PlainLoader(yaml.SafeLoader):
    """Without aliases: a few hundred bytes of them stand for more than fits in memory."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            alias = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(
                None, None, "aliases (*name) are not supported; write it out", alias.start_mark
            )
        return super().compose_node(parent, index)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelSection(_Section):
    """`uri`: a directory or a .safetensors file (relative to the manifest), `store://NAME[@digest]`,
    `s3://models/NAME` (a folder that was uploaded to the platform's bucket) or `blake3:...`.
    `digest` pins the checkpoint; for local files the CLI sets it when it has uploaded them."""

    uri: str | None = Field(default=None, min_length=1)
    digest: DigestText | None = None

    @field_validator("uri")
    @classmethod
    def _known_place(cls, uri: str | None) -> str | None:
        if uri is None or any(known.fullmatch(uri) for known in (_STORED, _UPLOADED, _DIGEST)):
            return uri
        if uri.startswith("s3://"):
            raise ValueError("expected s3://models/NAME, a folder of the platform's own bucket")
        if uri.startswith(("store://", "blake3:")):
            raise ValueError("expected store://NAME, store://NAME@blake3:... or blake3:...")
        if match := _SCHEME.match(uri):
            raise ValueError(
                f"{match['scheme']}:// is not supported yet; download the checkpoint and name"
                " its directory"
            )
        return uri

    @model_validator(mode="after")
    def _names_something(self) -> ModelSection:
        if self.uri is None and self.digest is None:
            raise ValueError("give a uri")
        return self

    @property
    def directory(self) -> str | None:
        """The uri when it names a directory or a file on this disk, not something in the store."""
        kept = (_STORED, _UPLOADED, _DIGEST)
        if self.uri is None or any(known.fullmatch(self.uri) for known in kept):
            return None
        return self.uri

    @property
    def folder(self) -> str | None:
        """The name below models/ in the platform's bucket, when the uri is of that kind."""
        match = _UPLOADED.fullmatch(self.uri) if self.uri is not None else None
        return match["folder"] if match else None


class SourceSection(_Section):
    """The handler's files in the checkpoint store; set by the CLI, not by people."""

    digest: DigestText


class RuntimeSection(_Section):
    engine: Annotated[EngineName, Field(strict=False)] = EngineName.AUTO
    handler: str | None = None  # a Python file beside the manifest
    args: EngineArgs = Field(default_factory=EngineArgs)
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("handler")
    @classmethod
    def _a_file_beside(cls, handler: str | None) -> str | None:
        if handler is None:
            return None
        path = PurePosixPath(handler)
        if path.is_absolute() or ".." in path.parts or path.suffix != ".py":
            raise ValueError("expected a Python file in the function's folder, like handler.py")
        return handler

    @model_validator(mode="after")
    def _handler_and_engine_agree(self) -> RuntimeSection:
        if self.engine is EngineName.HANDLER and self.handler is None:
            raise ValueError("engine handler needs a handler, like `handler: handler.py`")
        if self.handler is not None and self.engine not in {EngineName.AUTO, EngineName.HANDLER}:
            raise ValueError(f"a handler runs in engine handler, not in {self.engine.value}")
        return self


class ResourcesSection(_Section):
    cpu: float = Field(default=2.0, gt=0, le=1024)  # cores
    memory: SizeBytes = Field(default=2 << 30, ge=MIN_MEMORY_BYTES)


class ScaleSection(_Section):
    """`target` and `hard_limit` follow each other when only one is given."""

    min: int = Field(default=0, ge=0, le=MAX_INSTANCES)
    max: int = Field(default=1, ge=1, le=MAX_INSTANCES)
    target: int = Field(default=8, ge=1, le=MAX_CONCURRENCY)
    hard_limit: int = Field(default=16, ge=1, le=MAX_CONCURRENCY)
    keep_alive: DurationS = Field(default=300.0, ge=0, le=MAX_KEEP_ALIVE_S)

    @model_validator(mode="before")
    @classmethod
    def _follow(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        target, limit = data.get("target"), data.get("hard_limit")
        if isinstance(target, int) and limit is None:
            return {**data, "hard_limit": max(16, target)}
        if isinstance(limit, int) and target is None:
            return {**data, "target": min(8, limit)}
        return data

    @model_validator(mode="after")
    def _in_order(self) -> ScaleSection:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is above max ({self.max})")
        if self.target > self.hard_limit:
            raise ValueError(f"target ({self.target}) is above hard_limit ({self.hard_limit})")
        return self


class StartupSection(_Section):
    timeout: DurationS = Field(default=600.0, gt=0, le=MAX_STARTUP_TIMEOUT_S)
    max_held: int = Field(default=200, ge=0, le=100_000)


class CacheSection(_Section):
    """What nodes keep of the checkpoint: `pin` and `prefetch` name tiers."""

    pin: KeptTier | None = None
    min_copies: int = Field(default=1, ge=1, le=MAX_COPIES)
    prefetch: tuple[KeptTier, ...] = Field(default=(), strict=False)


class Manifest(_Section):
    """One function as its function.yaml says; defaults are those of `stoker.domain`."""

    name: str
    model: ModelSection | None = None
    source: SourceSection | None = None
    runtime: RuntimeSection = Field(default_factory=RuntimeSection)
    resources: ResourcesSection = Field(default_factory=ResourcesSection)
    scale: ScaleSection = Field(default_factory=ScaleSection)
    startup: StartupSection = Field(default_factory=StartupSection)
    cache: CacheSection = Field(default_factory=CacheSection)
    env: dict[str, str] = Field(default_factory=dict, max_length=MAX_ENV_VARIABLES)

    @field_validator("name")
    @classmethod
    def _a_label(cls, name: str) -> str:
        if not LABEL.fullmatch(name):
            raise ValueError(f"{name!r} is not a name: expected {NAME_RULE}")
        return name

    @field_validator("env")
    @classmethod
    def _variables(cls, env: dict[str, str]) -> dict[str, str]:
        for variable, value in env.items():
            if not _VARIABLE.fullmatch(variable) or "\0" in value:
                raise ValueError(f"{variable!r} cannot be an environment variable")
        return env

    @model_validator(mode="after")
    def _something_to_run(self) -> Manifest:
        if self.model is None and self.runtime.handler is None:
            raise ValueError("give a model (`model: {uri: ...}`) or a runtime.handler")
        if self.model is None and self.cache != CacheSection():
            raise ValueError("cache says what is kept of a model, and there is none")
        return self


def parse_manifest(data: Mapping[str, Any]) -> Manifest:
    """A manifest from its YAML or JSON content.

    Raises InvalidManifest: the first problem is the message, all are in `details["problems"]`.
    """
    if not isinstance(data, Mapping):
        raise invalid([Problem("", f"a manifest is a mapping of keys, not {type(data).__name__}")])
    supported, problems = drop_unsupported(data)
    try:
        manifest = Manifest.model_validate(supported)
    except ValidationError as error:
        raise invalid([*problems, *islice(explain(error, Manifest), MAX_PROBLEMS)]) from error
    if problems:
        raise invalid(problems)
    return manifest


def read_manifest(path: Path) -> Manifest:
    """The manifest at `path`, a file or a folder that holds a function.yaml.

    Raises InvalidManifest; for broken YAML it names the line and the column, both from 1.
    """
    if path.is_dir():
        path = path / MANIFEST_NAME
    try:
        with path.open("rb") as file:
            text = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise InvalidManifest(
            f"cannot read {path}: {error.strerror}; make one with `stoker init`",
            details={"path": str(path)},
        ) from error
    return parse_manifest(parse_yaml(text, str(path)))


def parse_yaml(text: bytes, what: str) -> Any:
    """The content of a manifest that `what` names in errors.

    Raises InvalidManifest; for broken YAML it names the line and the column, both from 1.
    """
    if len(text) > MAX_MANIFEST_BYTES:
        raise InvalidManifest(f"{what} is over {MAX_MANIFEST_BYTES} bytes")
    try:
        said = yaml.load(text, Loader=_PlainLoader)  # noqa: S506 - a SafeLoader
        # Text that is no Unicode, keys that are no text: nothing could write them down.
        json.dumps(said, ensure_ascii=False, default=str).encode()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise InvalidManifest(f"{what}: {place}{error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise InvalidManifest(f"{what} is not YAML that can be used: {error}") from error
    return said


def to_draft(
    manifest: Manifest, checkpoint: Artifact | None, source: Artifact | None
) -> RevisionDraft:
    """What to deploy, given the artifacts that the manifest's model and source stand for.

    Raises InvalidManifest when the manifest needs an artifact that is not there.
    """
    if manifest.model is not None and checkpoint is None:
        raise invalid([Problem("model.digest", _not_uploaded("model", manifest.model.uri))])
    if manifest.runtime.handler is not None and source is None:
        raise invalid(
            [Problem("source.digest", _not_uploaded("handler", manifest.runtime.handler))]
        )
    runtime, scale = manifest.runtime, manifest.scale
    return RevisionDraft(
        function=FunctionName(manifest.name),
        checkpoint=checkpoint if manifest.model is not None else None,
        source=source if runtime.handler is not None else None,
        runtime=RuntimeSpec(
            engine=EngineName.HANDLER if runtime.handler is not None else runtime.engine,
            handler=runtime.handler,
            args=runtime.args.model_dump(mode="json"),
            options=runtime.options,
        ),
        resources=Resources(manifest.resources.cpu, manifest.resources.memory),
        scale=ScalePolicy(scale.min, scale.max, scale.target, scale.hard_limit, scale.keep_alive),
        startup=StartupPolicy(manifest.startup.timeout, manifest.startup.max_held),
        env=dict(manifest.env),
        cache=CachePolicy(
            Tier(manifest.cache.pin) if manifest.cache.pin else None,
            manifest.cache.min_copies,
            tuple(Tier(tier) for tier in dict.fromkeys(manifest.cache.prefetch)),
        ),
    )


def _not_uploaded(kind: str, what: str | None) -> str:
    return f"the files of {kind} {what!r} are not in the store; `stoker deploy DIR` uploads them"
