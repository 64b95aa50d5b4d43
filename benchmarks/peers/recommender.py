"""What all peers share: a history of 50 items, the bundle's graph through ONNX Runtime, and a list as JSON.

It imports nothing of the worker: peers run in an environment of their own (benchmarks/peers/environment.py). Axes: B
users, L history, K list.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import onnxruntime
import orjson

NO_ITEM = -1
SCORE_DECIMALS = 6  # as the worker rounds


class History(TypedDict):
    """A user's newest items, oldest first; by id, so that a new model can read it."""

    items: list[str]
    times: list[int]  # epoch ms


class Click(NamedTuple):
    """An event that wants a list, with the history that it leads to."""

    user: str
    history: History
    partition: int
    offset: int


class Recommender:
    """A bundle in ONNX Runtime, with one thread that does not spin: the worker's own session options.

    Args:
        bundle: the directory.
    """

    def __init__(self, bundle: Path) -> None:
        manifest = json.loads((bundle / "manifest.json").read_text())
        self._model: str = manifest["model"]
        self.length: int = manifest["L"]
        lines = (bundle / "items.jsonl").read_bytes().splitlines()
        self._items: list[str] = [orjson.loads(line)["item"] for line in lines]
        self._rows = {item: row for row, item in enumerate(self._items)}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(bundle / "model.onnx", options, providers=["CPUExecutionProvider"])
        with np.load(bundle / "items.npz") as tensors:
            self._resident: dict[str, Any] = dict(tensors)

    def fold(self, history: History | None, event: dict[str, Any]) -> History:
        """The history after an event, or after the import of a whole one."""
        if is_import(event):
            return {"items": event["items"][-self.length :], "times": event["times"][-self.length :]}
        if history is None:
            return {"items": [event["item"]], "times": [event["time"]]}
        return {
            "items": [*history["items"], event["item"]][-self.length :],
            "times": [*history["times"], event["time"]][-self.length :],
        }

    def lists(self, clicks: Sequence[Click]) -> list[dict[str, Any]]:
        """The list for each click, with the fields of the worker's."""
        longest = max(len(click.history["items"]) for click in clicks)
        items_BL = np.full((len(clicks), longest), NO_ITEM, np.int32)
        times_BL = np.zeros((len(clicks), longest), np.int64)
        for b, click in enumerate(clicks):
            rows = [self._rows[item] for item in click.history["items"]]
            items_BL[b, longest - len(rows) :] = rows
            times_BL[b, longest - len(rows) :] = click.history["times"]
        feeds = {"history_items": items_BL, "history_times": times_BL, "excluded_items": items_BL} | self._resident
        names = ["items", "scores", "because"]
        items_BK, scores_BK, because_BK = self._session.run(names, feeds)
        items_BK, because_BK = items_BK.tolist(), because_BK.tolist()
        scores_BK = np.round(scores_BK.astype(np.float64), SCORE_DECIMALS).tolist()
        now_ms = int(time.time() * 1000)
        return [
            {
                "schema": 1,
                "user": click.user,
                "items": [self._items[row] for row in items_BK[b]],
                "scores": scores_BK[b],
                "because": [self._items[items_BL[b, place]] if place >= 0 else None for place in because_BK[b]],
                "model": self._model,
                "variant": "main",
                "events": 1,
                "event_time": click.history["times"][-1],
                "received_time": now_ms,
                "published_time": now_ms,
                "epoch": 0,
                "partition": click.partition,
                "offset": click.offset,
            }
            for b, click in enumerate(clicks)
        ]


def is_import(event: dict[str, Any]) -> bool:
    """Whether it is a history to begin with, for which no list is wanted."""
    return "items" in event


def arguments(description: str | None) -> argparse.Namespace:
    """The flags of every peer."""
    parser = argparse.ArgumentParser(description=description)
    for name in ("--bootstrap", "--events-topic", "--out-topic", "--group"):
        parser.add_argument(name, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--state-dir", type=Path, required=True, help="for files of its own")
    parser.add_argument("--session-timeout-s", type=int, default=45)
    return parser.parse_args()
