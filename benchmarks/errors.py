"""What ends a benchmark without a result."""

from stream_worker.errors import StreamWorkerError


class BenchmarkError(StreamWorkerError):
    """Something under measurement is broken, such as a lost list: there is no figure to print."""
