"""Write the reference tables of docs/settings.md and docs/metrics.md from the code; `--check` only compares them.

A table stands between `<!-- reference -->` and `<!-- end -->`; what is around it is written by hand.
"""

import sys
from pathlib import Path

from pydantic_settings import BaseSettings

from exporter.settings import (
    DataSettings,
    EmbedSettings,
    EvaluateSettings,
    LiveSettings,
    QuantizeSettings,
    TrainSettings,
)
from stream_worker.metrics import Metrics
from stream_worker.settings import (
    PREFIX,
    EventSettings,
    ForgetSettings,
    KafkaSettings,
    ReplaySettings,
    SeedSettings,
    Settings,
    StateSettings,
    TopicsSettings,
)

DOCS = Path(__file__).resolve().parents[1] / "docs"
BEGIN, END = "<!-- reference -->\n", "<!-- end -->"


def settings_table() -> str:
    """A section a command, a row a flag."""
    sections: list[tuple[str, type[BaseSettings], set[str]]] = [
        ("Every command", KafkaSettings, set()),
        (
            "`stream-worker run`, `doctor`, `replay`, `forget` and `seed`: the events",
            EventSettings,
            set(KafkaSettings.model_fields),
        ),
        (
            "`stream-worker run`, `doctor`, `replay` and `seed`: the state",
            StateSettings,
            set(EventSettings.model_fields),
        ),
        ("`stream-worker run`, `doctor` and `replay`: the rest", Settings, set(StateSettings.model_fields)),
        ("`stream-worker replay`", ReplaySettings, set(Settings.model_fields)),
        ("`stream-worker topics`", TopicsSettings, set(KafkaSettings.model_fields)),
        ("`stream-worker forget USER`", ForgetSettings, {*EventSettings.model_fields, "user"}),
        ("`stream-worker seed`", SeedSettings, set(StateSettings.model_fields)),
        ("`exporter train`, `evaluate`, `compare` and `quantize`: the data", DataSettings, set()),
        ("`exporter train`: the rest", TrainSettings, set(DataSettings.model_fields)),
        ("`exporter evaluate` and `compare A B`: the rest", LiveSettings, set(DataSettings.model_fields)),
        ("`exporter evaluate`", EvaluateSettings, set(LiveSettings.model_fields)),
        ("`exporter quantize BUNDLE`", QuantizeSettings, {*DataSettings.model_fields, "bundle"}),
        ("`exporter embed`", EmbedSettings, set[str]()),
    ]
    return "\n".join(f"## {title}\n\n{_rows(cls, leave_out)}" for title, cls, leave_out in sections)


def _rows(cls: type[BaseSettings], leave_out: set[str]) -> str:
    prefix = PREFIX if issubclass(cls, KafkaSettings) else cls.model_config.get("env_prefix") or ""
    rows = ["| flag | variable | default | meaning |", "|---|---|---|---|"]
    for name, field in cls.model_fields.items():
        if name not in leave_out:
            default = "required" if field.is_required() else f"`{field.default}`"
            variable = f"`{prefix}{name.upper()}`" if prefix else ""
            rows.append(f"| `--{name.replace('_', '-')}` | {variable} | {default} | {field.description} |")
    return "\n".join(rows) + "\n"


def metrics_table() -> str:
    """A row a metric."""
    rows = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for name, kind, labels, text in Metrics().catalogue:
        rows.append(f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {text} |")
    return "\n".join(rows) + "\n"


def with_table(text: str, table: str) -> str:
    """The document with its table replaced."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"


def main() -> int:
    """Write, or compare."""
    outdated = []
    for name, table in (("settings.md", settings_table()), ("metrics.md", metrics_table())):
        path = DOCS / name
        text = path.read_text()
        wanted = with_table(text, table)
        if text != wanted:
            outdated.append(name)
            if "--check" not in sys.argv:
                path.write_text(wanted)
    if outdated and "--check" in sys.argv:
        mend = ".venv/bin/python scripts/reference.py"
        sys.stderr.write(f"docs are older than the code: {', '.join(outdated)}; run {mend}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
