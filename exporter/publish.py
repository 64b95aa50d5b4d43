"""How a bundle comes to be: written into a directory beside, loaded there as a worker loads it, and renamed."""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import numpy as np

from exporter.histories import Feeds
from stream_worker.bundle import Bundle
from stream_worker.manifest import ITEMS, MANIFEST, MODEL, Manifest, find_bundle, set_current, sha256_of, write_manifest

UNFINISHED = ".export-"  # and what mkdtemp adds
ABANDONED = timedelta(days=1)  # no export takes as long
_NAME = re.compile(r"-(\d{8}T\d{6})-[0-9a-f]{8}$")


def publish(
    out: Path, fill: Callable[[Path], Manifest], now: datetime, approve: Callable[[Bundle], None] = lambda _: None
) -> Path:
    """Make a bundle the current one of `out`, or leave nothing behind.

    Args:
        out: the directory of bundles; made if it is not there.
        fill: writes the contents into the directory it is given, and returns the manifest, in which `model`, `created`
            and `files` are still to be set.
        now: the time of the export, UTC.
        approve: raises if the bundle, loaded, had better not be published.

    Returns:
        The bundle's directory.

    Raises:
        BundleError: the bundle does not load, or does not give what its example says.
    """
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=out))
    beside.chmod(0o755)  # mkdtemp's is 0700, and the worker may run as somebody else
    try:
        manifest = fill(beside)
        name, created = _free_name(out, manifest.name, _content_hash(beside), now)
        files = {path.name: sha256_of(path) for path in sorted(beside.iterdir())}
        created_text = created.isoformat(timespec="seconds")
        write_manifest(beside, msgspec.structs.replace(manifest, model=name, created=created_text, files=files))
        loaded = Bundle(beside)
        loaded.check_example()
        approve(loaded)
        for path in [*beside.iterdir(), beside]:  # before `current.json` names it: a node may lose its power
            _sync(path)
        bundle = beside.rename(out / name)
        _sync(out)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        if made:
            with suppress(OSError):  # somebody else may have put something there
                out.rmdir()
        raise
    set_current(out, bundle)
    return bundle


def prune(out: Path, keep: int, now: datetime) -> list[Path]:
    """Remove bundles, but for the current one and the newest; and what a killed export left more than a day ago.

    A worker has its bundle in memory, so one that is removed takes nothing from it.

    Args:
        out: the directory of bundles.
        keep: how many stay.
        now: UTC.

    Returns:
        The bundles that are gone, oldest first.
    """
    bundles = [path for path in out.iterdir() if (path / MANIFEST).is_file()]
    found = [(name[1], path) for path in bundles if (name := _NAME.search(path.name))]
    current = find_bundle(out)
    gone = [path for _, path in sorted(found)[:-keep] if path != current]
    for path in gone:
        shutil.rmtree(path)
    for path in out.glob(f"{UNFINISHED}*"):
        if now - datetime.fromtimestamp(path.stat().st_mtime, UTC) > ABANDONED:
            shutil.rmtree(path, ignore_errors=True)
    return gone


def save_arrays(path: Path, arrays: Feeds) -> None:
    """Write an .npz, without pickle."""
    np.savez(path, allow_pickle=False, **arrays)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _content_hash(directory: Path) -> str:
    """The first 8 hex digits of the sha256 of the graph followed by the item tensors."""
    content = hashlib.sha256()
    for name in (MODEL, ITEMS):
        content.update((directory / name).read_bytes())
    return content.hexdigest()[:8]


def _free_name(out: Path, kind: str, content: str, now: datetime) -> tuple[str, datetime]:
    """The bundle's name, and its time: the next second at which no bundle of the same content was made."""
    while (out / (name := f"{kind}-{now:%Y%m%dT%H%M%S}-{content}")).exists():
        now += timedelta(seconds=1)
    return name, now
