"""The trainer's knobs: a field is a flag, an environment variable `EXPORTER_…`, and a line of `--help`."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, CliPositionalArg, SettingsConfigDict

from stream_worker.settings import EXCLUDING, names_of

_CONFIG = SettingsConfigDict(
    env_prefix="EXPORTER_",
    frozen=True,
    extra="forbid",
    cli_kebab_case=True,
    cli_implicit_flags=True,
    cli_exit_on_error=False,
    cli_hide_none_type=True,  # else a flag that may be left out, such as --bf16, would want a value
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
    time_column: str = Field(
        "time", description="Column of the time: epoch s, ms, µs or ns, as the middle of all tells, or ISO 8601 text."
    )
    action_column: str = Field("action", description="Column of the action; without it every event is a view.")
    rating_column: str = Field(
        "", description="Column of ratings in the events: the best fifth are likes, the lower two fifths dislikes."
    )
    title_column: str = Field("title", description="Column of the title in the items.")
    content_vectors: str = Field(
        "", description="Column of the items with a precomputed vector: list of numbers, of one length, for every item."
    )

    max_events_per_minute: int | None = Field(
        None, ge=1, description="A user with more events within some minute is a bot and dropped; default no limit."
    )
    max_events_per_hour: int | None = Field(None, ge=1, description="The same within some hour.")
    core: int = Field(
        1, ge=1, description="k-core: drop users and items with fewer events, until all have as many; 1 keeps all."
    )
    session_gap_minutes: float | None = Field(
        None, gt=0, description="A longer silence of a user ends the session; reported, and a slice of the evaluation."
    )

    train_share: float = Field(
        0.8, gt=0, le=1, description="Share of the events, by time, to train on; the rest tests."
    )


class TrainSettings(DataSettings):
    """Train a model on a file of events, evaluate it on the newest of them, and write a bundle."""

    out: Path = Field(description="Directory of bundles; the new one becomes its current one.")
    keep_bundles: int | None = Field(
        None, ge=1, description="Bundles that stay in --out, the current one besides; older ones go. Default: all."
    )
    model: str = Field("hybrid", description="Model of the zoo (docs/models.md), or your own: package.module:Class.")

    validation_share: float = Field(
        0.1, gt=0, lt=1, description="Share of these, their newest, that decide when to stop."
    )
    refit: bool = Field(
        True, description="After stopping, train anew with the validation events, for as many epochs as were best."
    )

    length: int = Field(
        1000, ge=1, le=1024, description="Newest events of a user that the model sees (L), at most all that are kept."
    )
    window: int = Field(50, ge=1, le=1024, description="Newest of these that a sequence model attends to.")
    time_gaps: bool = Field(True, description="SASRec sees the time between events.")
    action_embeddings: bool = Field(False, description="SASRec sees the actions.")
    dim: int = Field(64, ge=2, le=1024, multiple_of=2, description="Size of an item vector (D).")
    score: Literal["dot", "cosine", "bilinear"] = Field(
        "dot", description="How two towers compare user and item: u·v, cos(u, v) or u'Av."
    )
    dropout: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Share of activations dropped in training; default 0.3 below 200,000 training events, else 0.05.",
    )
    learning_rate: float = Field(3e-3, gt=0, lt=1, description="Step size of AdamW.")
    weight_decay: float = Field(0.01, ge=0, lt=1, description="Weight decay of AdamW.")
    negatives: int = Field(
        0, ge=0, description="Items drawn for each batch's softmax, such as 1024 above 20,000 items; 0 takes them all."
    )
    warmup_steps: int = Field(0, ge=0, description="Steps in which the step size rises to --learning-rate.")
    decay_epochs: int = Field(
        0, ge=0, description="Passes in which it then falls to a tenth, by a cosine, to stay there; 0 keeps it."
    )
    batch_size: int = Field(32, ge=1, le=65536, description="Windows of histories in a training batch.")
    max_epochs: int = Field(100, ge=1, description="Most passes over the training events.")
    patience: int = Field(5, ge=1, description="Passes without 0.3 % more NDCG@10 in validation before it stops.")
    max_minutes: float | None = Field(None, gt=0, description="Most minutes of training; evaluation comes on top.")
    folds: int = Field(
        0, ge=0, le=20, description="Before the bundle: train and test so many models on folds of the training part."
    )
    resume: bool = Field(
        False, description="Go on after the last pass of an interrupted run with the same data, flags and --out."
    )
    tensorboard: Path | None = Field(
        None, description="Directory for TensorBoard: loss, NDCG@10 and step size by pass."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="The same seed and threads give the same weights.")
    threads: int = Field(2, ge=1, le=256, description="Threads of torch.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where to train; auto takes a GPU where there is one. Validation and export use the CPU."
    )
    bf16: bool | None = Field(
        None, description="Forward pass and loss in bfloat16, weights in float32; default: on a GPU that has it."
    )

    list_length: int = Field(20, ge=1, le=256, description="Items in a list (K).")
    exclude_seen: bool = Field(True, description="Leave the items of the user's history out of the list.")
    excluding_actions: str = Field(
        EXCLUDING,
        description="Actions, comma-separated, whose item is not recommended to the user again; the worker keeps such "
        "items by the setting of the same name, so give it the same.",
    )
    repeat_purchases: bool = Field(False, description="A purchase does not exclude the item: it may be bought again.")
    history_length: int = Field(
        64, ge=1, le=4096, description="Events that the worker keeps of a user; the evaluation goes by it, too."
    )

    @property
    def excluding(self) -> frozenset[str]:
        """`excluding_actions` as a set."""
        return names_of(self.excluding_actions)


class EmbedSettings(BaseSettings):
    """Add the vectors of a sentence-transformers model to an items file, for --content-vectors."""

    model_config = _CONFIG

    items: Path = Field(description="Parquet, CSV or JSON lines: item, title, attributes; of a catalogue or new ones.")
    text_encoder: Path = Field(description="Folder of a sentence-transformers model; nothing is downloaded.")
    out: Path = Field(description="The same with the vectors: .parquet, .jsonl or .ndjson.")
    item_column: str = Field("item", description="Column of the item in the items.")
    title_column: str = Field("title", description="Column of the title in the items; the rest are attributes.")
    vector_column: str = Field(
        "text_vector", description="Column of the vectors, for --content-vectors; one of that name is replaced."
    )
    batch_size: int = Field(64, ge=1, le=65536, description="Texts that are encoded at once.")
    threads: int = Field(2, ge=1, le=256, description="Threads of torch.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where to encode; auto takes a GPU where there is one."
    )


class LiveSettings(DataSettings):
    """How lists are made and judged, by `evaluate` and `compare`."""

    # A field `json` would hide pydantic's own method, and an alias would read the variable JSON, without a prefix.
    model_config = SettingsConfigDict(cli_shortcuts={"json-file": "json", "html-file": "html"})

    protocol: Literal["prequential", "leave-one-out", "time-split"] = Field(
        "prequential",
        description="prequential: rank before each event after the cut, update after it; leave-one-out: each user's "
        "last event, if it is after the cut; time-split: the list at the cut against all that came after.",
    )
    ks: str | None = Field(
        None,
        pattern=r"^[1-9]\d*(,[1-9]\d*)*$",
        description="Places at which lists are judged, comma-separated. Default: those of 1,5,10,20 that lists have.",
    )
    history_length: int = Field(64, ge=1, le=4096, description="Events that the worker keeps of a user (H).")
    excluded_length: int = Field(
        32, ge=0, le=4096, description="Items of excluding actions that the worker keeps of a user (E)."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Of the resamples behind the intervals.")
    json_file: Path | None = Field(None, description="Write the figures there, as JSON; `--json` for short.")
    html_file: Path | None = Field(
        None, description="Write the report there, one page that needs no other file; `--html` for short."
    )


class EvaluateSettings(LiveSettings):
    """Evaluate a bundle as a worker serves it: full ranking, by the worker's own code."""

    bundle: Path = Field(description="A bundle, or a directory of bundles with a current.json.")


class CompareSettings(LiveSettings):
    """Evaluate two bundles on the same events: paired differences, B less A."""

    a: CliPositionalArg[Path] = Field(description="A bundle, or a directory of bundles with a current.json.")
    b: CliPositionalArg[Path] = Field(description="Another.")


class VerifySettings(BaseSettings):
    """Check a bundle: its hashes, its graph, and the lists of its example."""

    model_config = _CONFIG

    bundle: CliPositionalArg[Path] = Field(description="A bundle, or a directory of bundles with a current.json.")


class QuantizeSettings(DataSettings):
    """Write a bundle anew with 8-bit weights, or candidates from items in 8 or 16 bits, unless its lists get worse."""

    bundle: CliPositionalArg[Path] = Field(description="A bundle, or a directory of bundles with a current.json.")
    out: Path = Field(description="Directory of bundles; the new one becomes its current one.")
    max_loss: float = Field(
        0.01, ge=-1, lt=1, description="Largest share of NDCG@10 that may be lost; else nothing is written."
    )
    items_int8: bool = Field(
        False, description="Find candidates by items in 8 bits, and score these anew: for large catalogues."
    )
    items_float16: bool = Field(
        False, description="The same in 16 bits, for a GPU: its memory's bandwidth is what a large catalogue takes."
    )
    weights_int8: bool = Field(True, description="Weights of the encoder in 8 bits: a quarter of the file.")
    history_length: int = Field(64, ge=1, le=4096, description="Events that the worker keeps of a user.")
    test_events: int = Field(
        50_000, ge=1, description="Most events after the cut to rank; of more, so many at equal distances."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Of the resamples behind the interval.")
