"""Deploys the function.yaml of folders that people upload, each with what its folder became.

Whoever may put files into the bucket gets no more by it than that: no code, no environment, and no
function that others have deployed. What was deployed is in the catalog, so that nothing is deployed
twice, and what was deleted since stays deleted.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import structlog

from stoker.checkpoints.import_state import ImportState
from stoker.checkpoints.waiting import in_thread, to_the_end
from stoker.domain import Digest
from stoker.errors import (
    BadRequest,
    FunctionTaken,
    InvalidManifest,
    PayloadTooLarge,
    StokerError,
)
from stoker.gateway.deploys import Deploys
from stoker.manifest import MANIFEST_NAME, Manifest, parse_manifest, parse_yaml
from stoker.store.catalog import Catalog
from stoker.store.draft import Upload, UploadDeploy

if TYPE_CHECKING:
    # It brings boto3, which takes a third of a second.
    from stoker.checkpoints.bucket import StoredObject
    from stoker.checkpoints.imports import Imports

HERE = frozenset({".", "./"})  # what a manifest may call the folder that it lies in
MAX_UPLOADED_BYTES = 16 << 10
MAX_REASON_CHARS = 500
TRY_AGAIN_S = 30.0  # what may pass
# What is not taken from a bucket: code, and what could make programs of files there.
REFUSED = {
    "source": "code is not run from a bucket",
    "env": "an environment is not taken from a bucket",
}

log = structlog.get_logger(__name__)


class UploadDeploys:
    """Follows `imports`, and has `deploys` deploy."""

    def __init__(self, imports: Imports, deploys: Deploys, catalog: Catalog) -> None:
        self._imports = imports
        self._deploys = deploys
        self._catalog = catalog

    async def run(self) -> None:
        """Deploys what is new, until cancelled."""
        while True:
            waiting = asyncio.create_task(self._imports.news())
            try:
                await asyncio.sleep(0)  # it listens before anything is looked at
                all_done = await self.deploy_all()
                with suppress(TimeoutError):
                    await asyncio.wait_for(waiting, None if all_done else TRY_AGAIN_S)
            finally:
                waiting.cancel()

    async def deploy_all(self) -> bool:
        """Looks at every folder once; whether none has to be tried again."""
        done = True
        for found in self._imports.imports():
            manifest = self._imports.manifest(found.name)
            if found.state is not ImportState.IMPORTED or found.digest is None or manifest is None:
                continue
            try:
                await self._deploy(found.name, manifest, found.digest)
            except StokerError as error:
                log.warning("not deployed yet", folder=found.name, error=error.message)
                done = False
            except Exception:  # what somebody uploaded must not end the platform
                log.exception("not deployed", folder=found.name)
        return done

    async def _deploy(self, folder: str, stored: StoredObject, digest: Digest) -> None:
        upload = Upload(folder, stored.etag, stored.modified_at, digest)
        before = await self._catalog.uploaded(folder)
        if before is not None and before.upload == upload:
            return
        try:
            text = await self._imports.read_manifest(stored, MAX_UPLOADED_BYTES)
            manifest = await in_thread(manifest_of, folder, text, digest)
            draft = await self._deploys.draft_of(manifest)
            # To its end: the scheduler hears of a revision right after the catalog has it.
            revision, created = await to_the_end(self._deploys.deploy(draft, upload))
        except (BadRequest, PayloadTooLarge, FunctionTaken) as error:
            reason = _plain(error.message)
            log.warning("not deployed", folder=folder, error=reason)
            await self._catalog.note_upload(upload, reason=reason)
        else:
            log.info("deployed", folder=folder, revision=revision.id, created=created)


def manifest_of(folder: str, text: bytes, digest: Digest) -> Manifest:
    """What a folder's function.yaml asks for, with the checkpoint that the folder became. Raises
    InvalidManifest."""
    said = parse_yaml(text, MANIFEST_NAME)
    if not isinstance(said, dict):
        raise InvalidManifest(f"{MANIFEST_NAME} is no mapping of keys")
    uri = f"s3://models/{folder}"
    model = {} if said.get("model") is None else said["model"]
    if not isinstance(model, dict) or "digest" in model or not _is_here(model.get("uri", uri), uri):
        raise InvalidManifest(
            f"model.uri: a {MANIFEST_NAME} in the bucket is of the folder that it lies in; leave"
            " model out",
            param="model.uri",
        )
    for key, why in REFUSED.items():
        if said.get(key):
            raise _refused(key, why, uri)
    manifest = parse_manifest({**said, "model": {**model, "uri": uri, "digest": digest}})
    if manifest.runtime.handler is not None or manifest.runtime.options:
        raise _refused("runtime.handler", REFUSED["source"], uri)
    return manifest


def shown(done: UploadDeploy | None) -> dict[str, Any] | None:
    """What became of a folder's function.yaml, as JSON."""
    return None if done is None else asdict(done)


def _is_here(said: object, uri: str) -> bool:
    return isinstance(said, str) and (said in HERE or said.rstrip("/") == uri)


def _refused(key: str, why: str, uri: str) -> InvalidManifest:
    return InvalidManifest(
        f"{key}: {why}; use `stoker deploy DIR` with `model: {{uri: {uri}}}`", param=key
    )


def _plain(message: str) -> str:
    """A message that can be stored and shown whatever it quotes."""
    return message[:MAX_REASON_CHARS].encode(errors="replace").decode()
