"""What an operator may set, from flags or `STOKER_*` variables, checked once at start."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
)

from stoker.errors import BadRequest
from stoker.quantities import parse_size_bytes

DEFAULT_PORT = 7717
DEFAULT_LISTEN = f"127.0.0.1:{DEFAULT_PORT}"
DEFAULT_URL = f"http://{DEFAULT_LISTEN}"
_BUCKET = re.compile(r"s3://[^/?#\s]+(/[^?#\s]*)?")


class Settings(BaseModel):
    """Settings of `stoker up`. Sizes in bytes, durations in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    home: Path = Field(default_factory=lambda: Path.home() / ".stoker")
    listen: str = DEFAULT_LISTEN
    store: str | None = None  # s3://BUCKET or s3://BUCKET/FOLDER; None: a directory below `home`
    events_token: SecretStr | None = None  # of whoever may say what happened in the bucket
    deploy_uploads: bool = False  # functions whose function.yaml lies in a folder of the bucket
    cache_size: int | None = None  # bytes of the node's copies of what is in `store`
    dram_size: int = 0  # bytes of the copies that are locked in memory
    warm_pool: int = Field(default=1, ge=0, le=64)  # blank workers kept ready on the node
    max_body_bytes: int = Field(default=8 << 20, ge=1024)  # of a request to the data plane
    drain_timeout_s: float = Field(default=10.0, gt=0)
    log_level: str = "info"

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        return home.expanduser().absolute()

    @field_validator("store")
    @classmethod
    def _bucket(cls, store: str | None) -> str | None:
        if store is not None and not _BUCKET.fullmatch(store):
            raise ValueError("expected s3://BUCKET or s3://BUCKET/FOLDER")
        return store

    @field_validator("events_token")
    @classmethod
    def _one_word(cls, token: SecretStr | None) -> SecretStr | None:
        # MinIO sends what has a space in it in another form.
        if token is not None and not re.fullmatch(r"[!-~]+", token.get_secret_value()):
            raise ValueError("expected a token of printable ASCII without spaces")
        return token

    @field_validator("cache_size", "dram_size", mode="before")
    @classmethod
    def _size(cls, size: object) -> object:
        return size if size is None else parse_size_bytes(size)

    @field_validator("listen")
    @classmethod
    def _host_and_port(cls, listen: str) -> str:
        host, separator, port = listen.rpartition(":")
        if not separator or not host or not port.isdigit() or int(port) > 65535:
            raise ValueError("expected HOST:PORT, for example 127.0.0.1:7717")
        return listen

    @property
    def host(self) -> str:
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.listen.rpartition(":")[2])


def load_settings(flags: Mapping[str, object], environ: Mapping[str, str] = os.environ) -> Settings:
    """Builds settings; a flag that is not None wins over `STOKER_<NAME>`.

    Raises `BadRequest` naming the setting and what is wrong with it.
    """
    values: dict[str, object] = {
        name: environ[f"STOKER_{name.upper()}"]
        for name in Settings.model_fields
        if f"STOKER_{name.upper()}" in environ
    }
    values.update({name: value for name, value in flags.items() if value is not None})
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise BadRequest(f"setting {name!r}: {first['msg']}", param=name) from error
