"""`python -m benchmarks.plots RESULT.json DIR`: a result of `benchmarks.run --json` as PNG, where a part has a picture.

`peers.png`: what a list costs each contender at *uniform*, and events a second at *zipf*. `topk.png`: the best of more
and more items, beside FAISS and the bare product.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # no display
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

OURS, THEIRS = "#2563eb", "#9ca3af"
PANELS = (
    ("uniform", "cpu_us_per_list", "CPU a list, µs (less is better)\na list for every event, 200,000 users"),
    ("zipf", "events_per_s", "events a second (more is better)\n20,000 users by Zipf's law"),
)
NAMES = {
    "worker": "stream-worker",
    "worker-rdk": "stream-worker, librdkafka",
    "quix": "Quix Streams",
    "bytewax": "Bytewax",
    "plain": "plain loop",
}


def peers(result: Mapping[str, Any], file: Path) -> None:
    """Two panels of bars, a contender each."""
    figure, axes = plt.subplots(1, len(PANELS), figsize=(11, 3.2), layout="constrained")
    for one, (load, name, title) in zip(axes, PANELS, strict=True):
        backlog = result["loads"][load]["backlog"]
        _bars(one, {label: backlog[key][name] for key, label in NAMES.items() if key in backlog}, title)
    _save(figure, file, result)


def topk(result: Mapping[str, Any], file: Path) -> None:
    """CPU a batch by catalogue, for each way."""
    sizes = list(result["topk"])
    batches = list(result["topk"][sizes[-1]])
    figure, axes = plt.subplots(1, len(batches), figsize=(11, 3.2), layout="constrained")
    for one, batch in zip(axes, batches, strict=True):
        for way in result["topk"][sizes[-1]][batch]:
            values = [result["topk"][size][batch][way]["ms"] for size in sizes]
            one.plot([int(size) for size in sizes], values, "o-", label=way)
        one.set(xscale="log", yscale="log", xlabel="items", title=f"ms a batch of {batch}")
        one.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    _save(figure, file, result)


def _bars(axes: Axes, values: Mapping[str, float], title: str) -> None:
    labels = list(values)[::-1]
    colours = [OURS if label.startswith("stream-worker") else THEIRS for label in labels]
    drawn = axes.barh(labels, [values[label] for label in labels], color=colours)
    axes.bar_label(drawn, fmt="{:,.0f}", padding=3)
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.15)


def _save(figure: Any, file: Path, result: Mapping[str, Any]) -> None:
    machine, date = result["machine"], result["date"]
    figure.supxlabel(f"{machine['cpu']}, {machine['cores']} shared cores, {date}: {result['command']}", fontsize=7)
    figure.savefig(file, dpi=130, metadata={"Software": None})
    plt.close(figure)


DRAWN = {"peers": peers, "topk": topk}


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what there is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plots", description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args(argv)
    result = json.loads(arguments.result.read_bytes())
    head = {name: result[name] for name in ("machine", "date", "command")}
    parts = result.get("parts", {result["benchmark"]: result})
    for name, draw in DRAWN.items():
        if name in parts:
            draw(head | parts[name], arguments.directory / f"{name}.png")
            print(arguments.directory / f"{name}.png")


if __name__ == "__main__":
    main()
