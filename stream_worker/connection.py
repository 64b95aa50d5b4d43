"""How a client reaches the brokers: addresses, TLS and SASL, in the words of each client library."""

from typing import TYPE_CHECKING, Any

from stream_worker.errors import SettingsError

if TYPE_CHECKING:
    from stream_worker.settings import KafkaSettings


def for_kafka_python(settings: "KafkaSettings") -> dict[str, Any]:
    """Options of any of kafka-python's clients.

    Raises:
        SettingsError: the password cannot be read.
    """
    s = settings
    options: dict[str, Any] = {"bootstrap_servers": s.bootstrap.split(","), "security_protocol": s.security_protocol}
    if s.security_protocol.endswith("SSL"):
        files = {"ssl_cafile": s.tls_ca_file, "ssl_certfile": s.tls_cert_file, "ssl_keyfile": s.tls_key_file}
        options |= {name: str(path) for name, path in files.items() if path is not None}
    if s.security_protocol.startswith("SASL"):
        options |= {
            "sasl_mechanism": s.sasl_mechanism,
            "sasl_plain_username": s.sasl_username,
            "sasl_plain_password": s.password,
        }
    return options


def for_librdkafka(settings: "KafkaSettings") -> dict[str, Any]:
    """Options of any of librdkafka's clients.

    Raises:
        SettingsError: the password cannot be read.
    """
    s = settings
    options: dict[str, Any] = {"bootstrap.servers": s.bootstrap, "security.protocol": s.security_protocol}
    if s.security_protocol.endswith("SSL"):
        files = {
            "ssl.ca.location": s.tls_ca_file or "probe",  # the system's, wherever they are
            "ssl.certificate.location": s.tls_cert_file,
            "ssl.key.location": s.tls_key_file,
        }
        options |= {name: str(path) for name, path in files.items() if path is not None}
    if s.security_protocol.startswith("SASL"):
        options |= {
            "sasl.mechanism": s.sasl_mechanism,
            "sasl.username": s.sasl_username,
            "sasl.password": s.password,
        }
    return options


def require_librdkafka() -> None:
    """Whether that client can be imported.

    Raises:
        SettingsError: it is not installed.
    """
    try:
        import confluent_kafka  # noqa: F401 - so that no other failed import is taken for this one
    except ModuleNotFoundError as error:
        raise SettingsError(
            "--client librdkafka: the package confluent-kafka is not installed. It comes with the extra `librdkafka`."
        ) from error
