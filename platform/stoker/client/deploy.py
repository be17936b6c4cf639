"""`stoker deploy`: reads a manifest, brings the files that it names, makes the revision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stoker.client.http import Json, Platform
from stoker.client.progress import Report
from stoker.client.push import CHECKPOINT, SOURCE, push
from stoker.local_files import local_files
from stoker.manifest import Manifest, SourceSection, read_manifest


@dataclass(frozen=True, slots=True)
class Deployment:
    """A function's revision, and whether this deploy made it; `body` is the platform's answer."""

    function: str
    revision: str
    created: bool
    invocation: str  # how to use it next, as a command
    body: Json

    def sentence(self) -> str:
        made = "created" if self.created else "unchanged"
        return f"{self.function}  revision {self.revision}  {made}"


def deploy(platform: Platform, path: Path, *, report: Report) -> Deployment:
    """Deploys the function at `path`, a function.yaml or its folder.

    Files that the platform knows already are not sent again. Raises `InvalidManifest`,
    `BadRequest` for files that cannot be read, and what the platform refuses with.
    """
    manifest = read_manifest(path)
    folder = path if path.is_dir() else path.parent
    files = local_files(manifest, folder)
    if files.model is not None and manifest.model is not None:
        artifact = push(platform, files.model, kind=CHECKPOINT, report=report)
        model = manifest.model.model_copy(update={"digest": artifact["digest"]})
        manifest = manifest.model_copy(update={"model": model})
    if files.source is not None:
        artifact = push(platform, files.source, kind=SOURCE, report=report)
        source = SourceSection(digest=artifact["digest"])
        manifest = manifest.model_copy(update={"source": source})
    wire = manifest.model_dump(mode="json", exclude_unset=True)
    deployed = platform.deploy(manifest.name, wire)
    return Deployment(
        function=manifest.name,
        revision=deployed.body["revision"],
        created=deployed.created,
        invocation=_invocation(manifest),
        body=deployed.body,
    )


def _invocation(manifest: Manifest) -> str:
    if manifest.runtime.handler is not None:
        return f"stoker invoke {manifest.name} '{{}}'"
    return f"stoker chat {manifest.name} --prompt 'Hello'"
