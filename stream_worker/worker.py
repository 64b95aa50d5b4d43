"""The life of a worker: startup, main loop, shutdown; signals and readiness."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import FrameType

import structlog

from stream_worker import allocation
from stream_worker.bundle import Bundle
from stream_worker.endpoints import Endpoints
from stream_worker.errors import TransportError
from stream_worker.metrics import Metrics
from stream_worker.pipeline import Pipeline
from stream_worker.settings import Settings
from stream_worker.transports.base import Transport

log = structlog.get_logger(__name__)

ALIVE_WITHIN_S = 30  # without a completed step for so long, the process is stuck
READY_CHECK_S = 0.5
RETRY_S = 1.0  # between two attempts to reach a broker at start


class Worker:
    """Serves until it is asked to stop.

    Args:
        settings: see there.
        bundle: loaded.
        transport: not yet open.
        metrics: all of them.
    """

    def __init__(self, settings: Settings, bundle: Bundle, transport: Transport, metrics: Metrics) -> None:
        self._settings = settings
        self._bundle = bundle
        self._transport = transport
        self._metrics = metrics
        self._pipeline: Pipeline | None = None
        self._stopping = False
        self._beat = time.monotonic()
        self._not_ready: str | None = "starting"
        self._ready_checked_at = 0.0
        metrics.ready.set_function(lambda: float(self.ready() is None))
        self._endpoints = Endpoints(settings.http_host, settings.http_port, metrics.registry, self.live, self.ready)

    def run(self) -> None:
        """Startup, main loop, shutdown.

        Raises:
            StreamWorkerError: what stops a worker; the class says the exit code.
        """
        with self._signals():
            try:
                if self.startup():
                    self.main_loop()
                    self.shutdown()
            finally:
                self._transport.close()
                self._endpoints.close()

    def startup(self) -> bool:
        """Listen, warm up, reach the broker. Whether it was reached before somebody asked for the end."""
        allocation.keep_memory_flat()
        port = self._endpoints.start()
        bundle, manifest, most = self._bundle, self._bundle.manifest, self._settings.batch_users
        if most is None:
            us_of = {batch: round(us) for batch, us in bundle.measure_batches().items()}
            log.info("batches measured", users=bundle.largest_batch, us_per_user=us_of)
        else:
            bundle.limit_batches(most)
        seconds = bundle.warm_up()
        self._metrics.model_info.labels(
            model=manifest.model, variant=self._settings.variant, device=self._bundle.device
        ).set(1)
        exported = datetime.fromisoformat(manifest.created).astimezone(UTC)
        self._metrics.model_age.set_function(lambda: time.time() - exported.timestamp())
        self._metrics.item_rows.set(len(self._bundle.items))
        log.info(
            "model is warm", model=manifest.model, items=len(self._bundle.items), device=self._bundle.device,
            seconds=round(seconds, 3), http_port=port,
        )  # fmt: skip
        self._not_ready = "waiting for the broker"
        while not self._stopping and not self._open_transport():
            self._beat = time.monotonic()
        if self._stopping:
            log.info("stopped before it began")
            return False
        allocation.settle()
        self._pipeline = Pipeline(self._settings, self._bundle, self._transport, self._metrics)
        return True

    def main_loop(self) -> None:
        """One step after the other."""
        assert self._pipeline is not None
        while not self._stopping:
            self._pipeline.step(self._settings.poll_timeout_s)
            self._beat = time.monotonic()
            self._metrics.last_step.set_to_current_time()
            if self._beat - self._ready_checked_at > READY_CHECK_S:
                self._ready_checked_at = self._beat
                self._check_ready()

    def shutdown(self) -> None:
        """Publish what is folded, checkpoint, leave."""
        self._not_ready = "stopping"
        assert self._pipeline is not None
        start = time.monotonic()
        done = self._pipeline.drain(self._settings.drain_timeout_s)
        seconds = round(time.monotonic() - start, 3)
        if done:
            log.info("drained", seconds=seconds)
        else:
            log.warning("stopped before all was published; the next owner will do it", seconds=seconds)

    def live(self) -> str | None:
        """For /livez: None, or why a restart is due. A broker that is away is no reason."""
        silent_s = time.monotonic() - self._beat
        return f"no step for {silent_s:.0f} s" if silent_s > ALIVE_WITHIN_S else None

    def ready(self) -> str | None:
        """For /readyz: None, or what is missing."""
        return self.live() or self._not_ready

    def stop(self) -> None:
        """Ask for an orderly end; returns at once."""
        self._stopping = True

    def _open_transport(self) -> bool:
        try:
            self._transport.open()
        except TransportError as error:
            log.warning("no broker yet, trying again", error=str(error))
            self._transport.close()
            time.sleep(RETRY_S)
            return False
        return True

    def _check_ready(self) -> None:
        assert self._pipeline is not None
        before = self._not_ready
        contact_age_s = self._transport.contact_age_s
        missing = self._transport.missing_topics()
        self._metrics.topics_missing.set(len(missing))
        if missing:
            self._not_ready = f"the broker has no topic {', '.join(missing)}"
        elif contact_age_s == float("inf"):
            self._not_ready = "waiting for partitions"
        elif contact_age_s > self._settings.session_timeout_s:
            self._not_ready = f"the broker has not answered for {contact_age_s:.0f} s"
        else:
            self._not_ready = self._pipeline.problem
        if missing and self._not_ready != before:
            log.error(
                "a topic is gone: was it deleted? Make it with `stream-worker topics --create` and restart the workers",
                topics=missing,
            )
        elif (before is None) != (self._not_ready is None):
            log.info("ready" if self._not_ready is None else "not ready", reason=self._not_ready)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def handle(number: int, _frame: FrameType | None) -> None:
            log.info("stopping", signal=signal.Signals(number).name)
            self.stop()

        before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
