"""What has become of a folder that somebody uploads, and what to say of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from stoker.checkpoints.model_folder import MODELS
from stoker.domain import Digest
from stoker.errors import CheckpointNotFound, Unavailable

SHOWN_LACKING = 10


class ImportState(StrEnum):
    """What has become of a folder."""

    INCOMPLETE = "incomplete"
    REFUSED = "refused"  # until it changes
    IMPORTING = "importing"
    IMPORTED = "imported"
    FAILED = "failed"  # and is tried again with the next listing


@dataclass(frozen=True, slots=True)
class Import:
    """A folder as it was found last. `digest` is what was made of it last, of this state or of an
    earlier one."""

    name: str
    fingerprint: str
    state: ImportState
    lacking: tuple[str, ...] = ()
    reason: str | None = None
    digest: Digest | None = None
    done_bytes: int = 0
    total_bytes: int = 0


class NotImported(CheckpointNotFound):
    """A folder of the bucket that is no checkpoint, or not yet."""

    code = "checkpoint_not_imported"


class FolderChanged(Unavailable):
    """Somebody changed a folder while it was imported: it is looked at again."""

    code = "folder_changed"


def why_not(name: str, found: Import | None) -> str:
    """Why a folder stands for no checkpoint."""
    folder = f"{MODELS}{name}"
    if found is None:
        return f"the bucket has no folder {folder}; upload the model's files to it"
    match found.state:
        case ImportState.INCOMPLETE:
            shown = ", ".join(found.lacking[:SHOWN_LACKING])
            more = len(found.lacking) - SHOWN_LACKING
            return f"{folder} lacks {shown}{f' and {more} more' if more > 0 else ''}; upload it"
        case ImportState.REFUSED | ImportState.FAILED:
            return f"{folder} is no checkpoint: {found.reason}"
        case _:
            return (
                f"{folder} is being imported ({found.done_bytes} of {found.total_bytes} bytes);"
                " try again"
            )
