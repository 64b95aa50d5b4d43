"""What can go wrong, and whose it is to mend.

    StreamWorkerError          exit 1   a bug, if it ever reaches the user as it is
    ├── SettingsError          exit 2   a setting, flag or argument is wrong; or the brokers do not let us in by it
    ├── BundleError            exit 3   the model directory or the device is not usable
    ├── DataError              exit 4   topics, permissions on them, or input files are not as required
    ├── FencedError            exit 5   another worker has taken over
    ├── TransportError         -        the broker is away; retriable
    └── RejectedEventError     -        one event is not well formed; it goes to events.rejected

Every message says what was wrong, where, and what to do. A library's exceptions are mapped to these once,
in the one file that imports the library.
"""

from typing import ClassVar


class StreamWorkerError(Exception):
    """The root: `exit_code` is the process's, `retriable` says whether the same call can succeed later."""

    exit_code: ClassVar[int] = 1
    retriable: ClassVar[bool] = False


class SettingsError(StreamWorkerError):
    """A setting, flag or argument is wrong."""

    exit_code = 2


class BundleError(StreamWorkerError):
    """The bundle cannot be used (missing, changed, of another schema), or the device it should run on is absent."""

    exit_code = 3


class DataError(StreamWorkerError):
    """Topics or input files are not as required."""

    exit_code = 4


class FencedError(StreamWorkerError):
    """Another process has taken over this worker's identity or partitions."""

    exit_code = 5


class TransportError(StreamWorkerError):
    """The broker did not answer; nothing is lost, the caller may try again."""

    retriable = True


class RejectedEventError(StreamWorkerError):
    """One event is not well formed. `reason` is the metric's label, the message says what and how to mend it.

    `detail` may hold parts of the event: it belongs on the rejected topic, and in no log.
    """

    def __init__(self, reason: str, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.detail = detail
