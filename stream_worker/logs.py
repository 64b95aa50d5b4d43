"""Logging: one line a notable thing; pretty on a terminal, JSON elsewhere. No user id above DEBUG."""

import logging
import sys

import structlog


def configure(level: str, form: str) -> None:
    """Set up structlog and, through it, the libraries' own loggers.

    Args:
        level: debug, info, warning or error.
        form: auto, json or pretty.
    """
    pretty = sys.stderr.isatty() if form == "auto" else form == "pretty"
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info if not pretty else structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
                if pretty
                else structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # The clients' INFO is chatter, and their DEBUG prints keys and values, which are people's.
    for client in ("kafka", "librdkafka"):
        logging.getLogger(client).setLevel(max(logging.WARNING, root.level))
    # kafka-python's warns whenever the machine was busy for a tenth of a second.
    logging.getLogger("kafka.net.selector").setLevel(logging.ERROR)


def silence() -> None:
    """No line for anything but our own errors, for a command whose output says it all."""
    logging.getLogger().setLevel(logging.ERROR)
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
