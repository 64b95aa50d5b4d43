"""What is logged of a training run for TensorBoard, if its package is there; else nothing."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from stream_worker.errors import SettingsError


class Curves:
    """Scalars by epoch, written at once.

    Args:
        directory: where TensorBoard looks; None writes nothing.

    Raises:
        SettingsError: a directory is given, and the package is not installed.
    """

    def __init__(self, directory: Path | None) -> None:
        self._writer: Any = None
        if directory is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise SettingsError(
                f"--tensorboard {directory}: the package is not installed, and not part of the extra `train`. "
                "`pip install tensorboard` beside it, or leave the flag out."
            ) from error
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
