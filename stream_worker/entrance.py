"""Whether the brokers let us in, and why not: an address, a certificate, a password, a permission.

kafka-python keeps trying whatever the reason is, and then says that it took too long. So a single connection is made
first, whose own error says more.
"""

import gc
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from kafka.errors import (
    AuthorizationError,
    IllegalSaslStateError,
    KafkaConfigurationError,
    KafkaError,
    SaslAuthenticationFailedError,
    UnsupportedSaslMechanismError,
)
from kafka.net.compat import KafkaNetClient

from stream_worker.connection import for_kafka_python
from stream_worker.errors import DataError, SettingsError, StreamWorkerError, TransportError

if TYPE_CHECKING:
    from stream_worker.settings import KafkaSettings

Client = TypeVar("Client")

TIMEOUT_MS = 5000
ACLS = "docs/operations.md, Permissions, lists what is needed"


def made(kind: Callable[..., Client], options: Mapping[str, Any]) -> Client:
    """A client of kafka-python. One that cannot be made would leave its thread and its sockets behind, for ever.

    Raises:
        kafka.errors.KafkaError: no broker answers.
    """
    inner: list[KafkaNetClient] = []

    def remembered(**config: Any) -> KafkaNetClient:
        inner.append(KafkaNetClient(**config))
        return inner[-1]

    try:
        return kind(**options, kafka_client=remembered)
    except BaseException:
        for client in inner:
            client.close()
        gc.collect()  # what could not connect leaves its socket in a cycle of references
        raise


def knock(settings: "KafkaSettings") -> None:
    """Connect to the first broker that answers, prove who we are, and leave. Does nothing without TLS and SASL.

    Raises:
        SettingsError: it does not trust us, or we do not trust it.
        TransportError: none answers.
    """
    if settings.security_protocol == "PLAINTEXT":
        return
    client = KafkaNetClient(**for_kafka_python(settings))
    try:
        client._net.start()  # noqa: SLF001 - there is no public way to a single connection
        error = client._manager.run(_enter, client._manager)  # noqa: SLF001
        if error is None:
            return
        recognised = client._manager.broker_version_data is not None  # noqa: SLF001 - it spoke Kafka with us
    finally:
        client.close()
        gc.collect()  # what could not connect leaves its socket in a cycle of references
    raise _reason(settings, error, recognised) from error


async def _enter(manager: Any) -> Exception | None:
    error: Exception | None = None
    for broker in manager.cluster.bootstrap_brokers():
        try:
            await manager.get_connection(
                broker.node_id, timeout_ms=TIMEOUT_MS, pop_on_close=False, refresh_metadata_on_err=False
            )
        except Exception as found:  # whatever it is: it is looked at
            error = found
        else:
            return None
    return error


def _reason(settings: "KafkaSettings", error: Exception, recognised: bool) -> StreamWorkerError:
    s = settings
    where, text = f"broker {s.bootstrap}", str(error)
    if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
        return SettingsError(f"--tls-ca-file, --tls-cert-file or --tls-key-file: not usable: {text}.")
    if found := re.search(r"CERTIFICATE_VERIFY_FAILED\] certificate verify failed: (.*?)(?: \(_ssl|$)", text):
        return SettingsError(f"{where}: its certificate is not accepted: {found[1]}. {_mend(found[1])}")
    if re.search(r"ALERT_(?:CERTIFICATE|BAD_CERTIFICATE|UNKNOWN_CA)|CERTIFICATE_REQUIRED", text):
        return SettingsError(
            f"{where}: it does not accept our certificate ({text}). Is --tls-cert-file from somebody whom it trusts?"
        )
    if isinstance(error, UnsupportedSaslMechanismError | IllegalSaslStateError):
        return SettingsError(f"{where}: {text}. Choose another --sasl-mechanism, or --security-protocol.")
    # The broker says that it refuses us and hangs up; the client sees the latter alone.
    if isinstance(error, SaslAuthenticationFailedError) or (recognised and s.security_protocol.startswith("SASL")):
        return SettingsError(
            f"{where}: it refuses user {s.sasl_username!r} with {s.sasl_mechanism}. Is the password right, and does the"
            " user exist there?"
        )
    return TransportError(
        f"{where}: {text}. Is it running, the address right, and does this port speak {s.security_protocol}?"
    )


def _mend(reason: str) -> str:
    if "expired" in reason:
        return "Renew it on the broker."
    if "mismatch" in reason:
        return "Its names do not hold the address in --bootstrap."
    return "Name the authority that issued it in --tls-ca-file."


def away(settings: "KafkaSettings", error: KafkaError) -> StreamWorkerError:
    """What a client that cannot connect is to the user."""
    if isinstance(error, KafkaConfigurationError):
        return SettingsError(f"broker {settings.bootstrap}: {error}.")
    if isinstance(error, AuthorizationError):
        return forbidden(settings, error)
    return TransportError(f"broker {settings.bootstrap}: {error}. Is it running, and the address right?")


def forbidden(settings: "KafkaSettings", error: object) -> DataError:
    """What a permission that is missing is to the user."""
    what = re.sub(r"^\[Error \d+\] ", "", str(error))
    return DataError(f"broker {settings.bootstrap}: {whoever(settings)} is not allowed to: {what}. {ACLS}.")


def lacks(settings: "KafkaSettings", permissions: str) -> DataError:
    """What is not granted to us."""
    return DataError(f"broker {settings.bootstrap}: {whoever(settings)} lacks the permission {permissions}. {ACLS}.")


def whoever(settings: "KafkaSettings") -> str:
    """Who we are to the broker."""
    return f"user {settings.sasl_username!r}" if settings.sasl_username else "we"
