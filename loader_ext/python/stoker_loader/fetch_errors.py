"""The branch of the error tree for bytes from elsewhere."""

from __future__ import annotations

from stoker_loader.error_base import LoaderError


class FetchError(LoaderError):
    """Bytes from elsewhere did not arrive."""


class FetchBusyError(FetchError):
    """Another process fetches the same file."""

    code = "fetch_busy"


class ArrivalInvalidError(FetchError):
    """What should be an arrival map is none."""

    code = "arrival_invalid"


class FetchAbandonedError(FetchError):
    """Who fetched the file is gone, and it is not complete."""

    code = "fetch_abandoned"


class WaitTimeoutError(FetchError):
    """What was waited for did not arrive in time."""

    code = "wait_timeout"


class NoSourceError(FetchError):
    """There is no source to fetch from."""

    code = "no_source"


class SourceMissingError(FetchError):
    """The source has no such object."""

    code = "source_missing"


class SourceRefusedError(FetchError):
    """The source refuses to give the object."""

    code = "source_refused"


class SourceChangedError(FetchError):
    """The object changed at its source while it was fetched."""

    code = "source_changed"


class RangeRefusedError(FetchError):
    """The source refuses a range that lies within the object."""

    code = "range_refused"


class RangeIgnoredError(FetchError):
    """The source does not answer with the range that was asked for."""

    code = "range_ignored"


class SourceFailedError(FetchError):
    """The source failed, also when it was asked again."""

    code = "source_failed"
