"""The trainer's knobs: a field is a flag, an environment variable `EXPORTER_…`, and a line of `--help`."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, CliPositionalArg, SettingsConfigDict

_CONFIG = SettingsConfigDict(
    env_prefix="EXPORTER_",
    frozen=True,
    extra="forbid",
    cli_kebab_case=True,
    cli_implicit_flags=True,
    cli_exit_on_error=False,
)


class DataSettings(BaseSettings):
    """The files, and how they are read: the same for training and evaluation."""

    model_config = _CONFIG

    events: Path = Field(description="Parquet, CSV or JSON lines: user, item, time and optionally action.")
    items: Path | None = Field(
        None, description="Parquet, CSV or JSON lines: item, title, attributes; events of other items are dropped."
    )

    user_column: str = Field("user", description="Column of the user in the events.")
    item_column: str = Field("item", description="Column of the item in the events and in the items.")
    time_column: str = Field("time", description="Column of the time: epoch seconds, epoch ms, or ISO 8601 text.")
    action_column: str = Field("action", description="Column of the action; without it every event is a view.")
    title_column: str = Field("title", description="Column of the title in the items.")

    train_share: float = Field(
        0.8, gt=0, le=1, description="Share of the events, by time, to train on; the rest tests."
    )


class TrainSettings(DataSettings):
    """Train a model on a file of events, evaluate it on the newest of them, and write a bundle."""

    out: Path = Field(description="Directory of bundles; the new one becomes its current one.")
    model: str = Field(
        "sasrec", description="Model of the zoo (sasrec, popularity), or your own: package.module:Class."
    )

    validation_share: float = Field(
        0.1, gt=0, lt=1, description="Share of these, their newest, that decide when to stop."
    )
    refit: bool = Field(
        True, description="After stopping, train anew with the validation events, for as many epochs as were best."
    )

    length: int = Field(50, ge=1, le=1024, description="Newest events of a user that the model sees (L).")
    dim: int = Field(64, ge=2, le=1024, multiple_of=2, description="Size of an item vector (D).")
    dropout: float = Field(0.3, ge=0, lt=1, description="Share of activations dropped in training.")
    learning_rate: float = Field(3e-3, gt=0, lt=1, description="Step size of AdamW.")
    weight_decay: float = Field(0.01, ge=0, lt=1, description="Weight decay of AdamW.")
    batch_size: int = Field(32, ge=1, le=65536, description="Windows of histories in a training batch.")
    max_epochs: int = Field(100, ge=1, description="Most passes over the training events.")
    patience: int = Field(5, ge=1, description="Passes without a better NDCG@10 in validation before it stops.")
    max_minutes: float | None = Field(None, gt=0, description="Most minutes of training; evaluation comes on top.")
    seed: int = Field(0, ge=0, lt=2**63, description="The same seed and threads give the same weights.")
    threads: int = Field(2, ge=1, le=256, description="Threads of torch.")

    list_length: int = Field(20, ge=1, le=256, description="Items in a list (K).")
    exclude_seen: bool = Field(True, description="Leave the items of the user's history out of the list.")
    repeat_purchases: bool = Field(False, description="A purchase does not exclude the item: it may be bought again.")
    history_length: int = Field(
        64, ge=1, le=4096, description="Events that the worker keeps of a user; the evaluation goes by it, too."
    )


class VerifySettings(BaseSettings):
    """Check a bundle: its hashes, its graph, and the lists of its example."""

    model_config = _CONFIG

    bundle: CliPositionalArg[Path] = Field(description="A bundle, or a directory of bundles with a current.json.")


class QuantizeSettings(DataSettings):
    """Write a bundle anew with 8-bit weights and items, unless its lists get worse."""

    bundle: CliPositionalArg[Path] = Field(description="A bundle, or a directory of bundles with a current.json.")
    out: Path = Field(description="Directory of bundles; the new one becomes its current one.")
    max_loss: float = Field(
        0.01, ge=-1, lt=1, description="Largest share of NDCG@10 that may be lost; else nothing is written."
    )
    items_int8: bool = Field(True, description="Items in 8 bits: a quarter of the memory.")
    weights_int8: bool = Field(True, description="Weights of the encoder in 8 bits: a quarter of the file.")
    history_length: int = Field(64, ge=1, le=4096, description="Events that the worker keeps of a user.")
    test_events: int = Field(
        50_000, ge=1, description="Most events after the cut to rank; of more, so many at equal distances."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Of the resamples behind the interval.")
