"""What all clients of librdkafka have in common: settings, log, and what their errors are to us."""

import logging
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import structlog
from confluent_kafka import KafkaError, KafkaException

from stream_worker.connection import for_librdkafka
from stream_worker.errors import SettingsError, StreamWorkerError, TransportError
from stream_worker.settings import KafkaSettings

log = structlog.get_logger(__name__)

OLDEST_CLIENT = (2, 11)


def client_options(settings: KafkaSettings, **more: Any) -> dict[str, Any]:
    """Settings of any client; in `more`, underscores stand for dots."""
    return {
        **for_librdkafka(settings),
        "reconnect.backoff.max.ms": 1000,
        "allow.auto.create.topics": False,
        "logger": logging.getLogger("librdkafka"),  # its lines come out while the client is polled
        "log_level": 7 if logging.getLogger().isEnabledFor(logging.DEBUG) else 2,  # 3 is a line an attempt to connect
        "error_cb": _note,
        **{name.replace("_", "."): value for name, value in more.items()},
    }


def check_version() -> None:
    """Refuse what is too old.

    Raises:
        SettingsError: it is.
    """
    found = version("confluent-kafka")
    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST_CLIENT:
        oldest = ".".join(map(str, OLDEST_CLIENT))
        raise SettingsError(f"confluent-kafka {found}: too old. Install {oldest} or newer.")


def cause(error: KafkaException) -> KafkaError:
    """What is inside an exception."""
    found: KafkaError = error.args[0]
    return found


def away(settings: KafkaSettings, error: KafkaException) -> StreamWorkerError:
    """What a client that cannot connect is to the user."""
    return TransportError(f"broker {settings.bootstrap}: {cause(error).str()}. Is it running, and the address right?")


def _note(error: KafkaError) -> None:
    """For what has no caller: a broker that cannot be reached, say. The client goes on trying by itself."""
    log.debug("the client has a problem", code=error.name(), error=error.str())


def fields(message: Any) -> Mapping[str, Any]:
    """Where an error message of a consumer belongs, for the log."""
    return {"topic": message.topic(), "partition": message.partition(), "error": message.error().str()}
