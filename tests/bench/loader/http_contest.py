"""What takes turns over one link: raw GETs of several widths, and our fetch, alone and with a load
beside it or behind it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from tests.bench.loader.http_child import AFTERWARDS, AS_IT_ARRIVES, Fetching, FetchOrder
from tests.bench.loader.network import Link
from tests.bench.loader.processes import run_module
from tests.bench.loader.results import HttpResults
from tests.bench.loader.store import Store
from tests.bench.loader.web import STREAMS, raw_bytes_per_s, serving

import stoker_loader

OURS = "stoker"
LOADED = {f"stoker, loaded {when}": when for when in (AS_IT_ARRIVES, AFTERWARDS)}


@dataclass(frozen=True, slots=True)
class Exchange:
    """One checkpoint's file, served from where it lies."""

    store: Store
    checkpoint: str

    @contextmanager
    def over(self, link: Link) -> Iterator[dict[str, Callable[[], float | Fetching]]]:
        """What measures each way. Raises NoServerError."""
        file = self.store.ours(self.checkpoint)
        data = self.store.data.resolve()
        stoker_loader.prefetch(file)
        with (
            serving(data, link) as url,
            tempfile.TemporaryDirectory(dir=data, prefix=".fetched-") as folder,
        ):
            digest = Path(folder) / "digest.json"
            (known,) = stoker_loader.digest(file).files
            digest.write_text(json.dumps([known.name, known.size_bytes, known.chunks]))
            order = FetchOrder(
                url=f"{url}/{file.resolve().relative_to(data)}",
                destination=str(Path(folder) / "into" / file.name),
                digest=str(digest),
            )
            yield {
                **{
                    f"{streams} curl": partial(
                        raw_bytes_per_s, link, order.url, known.size_bytes, streams
                    )
                    for streams in STREAMS
                },
                OURS: partial(_fetched, link, order),
                **{
                    name: partial(_fetched, link, replace(order, loading=when))
                    for name, when in LOADED.items()
                },
            }


def as_results(found: Mapping[str, list[float | Fetching]]) -> HttpResults:
    """Rounds, sorted into what they are."""
    return HttpResults(
        raw={
            name: [value for value in values if isinstance(value, float)]
            for name, values in found.items()
            if name != OURS and name not in LOADED
        },
        fetched=_fetchings(found[OURS]),
        loaded={when: _fetchings(found[name]) for name, when in LOADED.items()},
    )


def _fetchings(values: list[float | Fetching]) -> list[Fetching]:
    return [value for value in values if isinstance(value, Fetching)]


def _fetched(link: Link, order: FetchOrder) -> Fetching:
    """In a process at the client's end; what it fetched is gone afterwards."""
    into = Path(order.destination).parent
    into.mkdir()
    try:
        said = run_module(
            "tests.bench.loader.http_child",
            json.dumps(asdict(order)),
            before=link.at_client,
        )
    finally:
        shutil.rmtree(into)
    return Fetching(**json.loads(said))
