"""How a bundle comes to be: written into a directory beside, loaded there as a worker loads it, and renamed."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
import numpy as np

from exporter.histories import Feeds
from stream_worker.bundle import Bundle
from stream_worker.manifest import ITEMS, MODEL, Manifest, set_current, sha256_of, write_manifest


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
    beside = Path(tempfile.mkdtemp(prefix=".export-", dir=out))
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
        bundle = beside.rename(out / name)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        if made:
            with suppress(OSError):  # somebody else may have put something there
                out.rmdir()
        raise
    set_current(out, bundle)
    return bundle


def save_arrays(path: Path, arrays: Feeds) -> None:
    """Write an .npz, without pickle."""
    np.savez(path, allow_pickle=False, **arrays)


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
