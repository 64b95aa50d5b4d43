"""What is logged of a training run for TensorBoard."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self


class Curves:
    """Scalars by epoch, written at once.

    Args:
        directory: where TensorBoard looks; None writes nothing.
    """

    def __init__(self, directory: Path | None) -> None:
        self._writer: Any = None
        if directory is None:
            return
        # Not at the top: it takes half a second, which runs without curves need not wait for.
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory))

    def add(self, epoch: int, **values: float) -> None:
        """The values at the end of an epoch."""
        if self._writer is None:
            return
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def __enter__(self) -> Self:
        """Nothing to do."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
