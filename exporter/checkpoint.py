"""What an interrupted training run needs to go on: written after every epoch, whole or not at all."""

import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from exporter.histories import Log
from exporter.models.base import Recommender
from exporter.trainer import Recipe
from stream_worker.errors import SettingsError

LIMITS = ("max_epochs", "patience", "max_minutes")  # may change between an interruption and the resume


@dataclass(frozen=True)
class Checkpoint:
    """A file, and what tells that it is of the same run.

    Attributes:
        path: the file.
        signature: of the stage, the data, the model and the recipe.
    """

    path: Path
    signature: str

    @classmethod
    def of(cls, beside: Path, stage: str, log: Log, model: Recommender, recipe: Recipe) -> "Checkpoint":
        """The checkpoint of this stage, in a file named after the one `beside`."""
        how = {name: value for name, value in asdict(recipe).items() if name not in LIMITS}
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        data = [len(log)] + [zlib.crc32(one.tobytes()) for one in (log.item_E, log.user_E, log.action_E, log.time_E)]
        return cls(beside.with_name(f"{beside.name}.{stage}"), f"{stage} {data} {shapes} {how}")

    def load(self) -> dict[str, Any] | None:
        """What `save` kept, None if there is nothing.

        Raises:
            SettingsError: it is of another run, or not whole.
        """
        if not self.path.is_file():
            return None
        try:
            found: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch's and zipfile's own share no base but Exception
            raise SettingsError(f"--resume: {self.path} is not readable ({error}). Delete it to start anew.") from error
        if found["signature"] != self.signature:
            raise SettingsError(
                f"--resume: {self.path} is of a run with other data or flags. Give the same, or leave --resume out."
            )
        return found

    def save(self, state: dict[str, Any]) -> None:
        """Keep it, in place of what was kept before."""
        beside = self.path.with_name(self.path.name + ".new")
        torch.save({"signature": self.signature, **state}, beside)
        beside.rename(self.path)
