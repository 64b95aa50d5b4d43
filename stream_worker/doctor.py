"""Everything that `stream-worker run` will need, looked at beforehand, with the code that `run` uses."""

import math
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from stream_worker.bundle import Bundle
from stream_worker.connection import require_librdkafka
from stream_worker.errors import BundleError, SettingsError, StreamWorkerError
from stream_worker.findings import Finding
from stream_worker.manifest import find_bundle, read_manifest
from stream_worker.settings import Settings
from stream_worker.state import bytes_of_user
from stream_worker.topics import refuse_old_client
from stream_worker.transports.kafka_doctor import examine_kafka
from stream_worker.vectors import VectorCache

LIBRARIES = ("kafka-python", "confluent-kafka", "onnxruntime-gpu", "onnxruntime", "numpy")
PROCESS_BYTES = 400 * 2**20  # of a worker without users: interpreter, libraries, session
GIB = 2**30


def examine(settings: Settings) -> list[Finding]:
    """Look at it all; writes to no topic."""
    findings = [_settings(settings), _libraries(settings)]
    bundle = _bundle(settings, findings)
    partitions, kafka = examine_kafka(settings)
    findings += kafka
    findings.append(_memory(settings, bundle, partitions))
    return findings


def _settings(settings: Settings) -> Finding:
    given = sorted(f"--{name.replace('_', '-')}" for name in settings.model_fields_set)
    return Finding("settings", f"valid; given, by flag or variable: {', '.join(given)}")


def _libraries(settings: Settings) -> Finding:
    found = [f"Python {platform.python_version()}"]
    for name in LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    try:
        refuse_old_client()
        if settings.client == "librdkafka":
            require_librdkafka()
    except SettingsError as error:
        return Finding.of("libraries", error)
    return Finding("libraries", ", ".join(found))


def _bundle(settings: Settings, findings: list[Finding]) -> Bundle | None:
    """Add what is found of files, device, lengths and example. Returns the bundle if it can be loaded."""
    try:
        manifest = read_manifest(find_bundle(settings.bundle))
    except StreamWorkerError as error:
        findings += [Finding.of("bundle", error), _skipped("device"), _skipped("lengths"), _skipped("example")]
        return None
    findings.append(
        Finding("bundle", f"{manifest.model}: {manifest.items:,} items, {len(manifest.files)} files, hashes match")
    )
    try:
        bundle = Bundle(settings.bundle, settings.device, settings.threads)
    except BundleError as error:
        what = "device" if str(error).startswith("device") else "model"
        findings += [Finding.of(what, error), _skipped("lengths"), _skipped("example")]
        return None
    findings += [_device(settings, bundle), _lengths(settings, bundle), _example(bundle)]
    return bundle


def _skipped(what: str) -> Finding:
    return Finding(what, "not looked at: the bundle comes first", "skipped")


def _device(settings: Settings, bundle: Bundle) -> Finding:
    if bundle.device == "cuda":
        return Finding("device", "cuda")
    cpus = len(os.sched_getaffinity(0))
    if settings.threads > cpus:
        mend = f"Lower --threads to {cpus}; more workers beat more threads."
        return Finding("device", f"cpu: {settings.threads} threads, but {cpus} CPUs. {mend}", "unwise")
    why = "; --device auto took it, --device cuda says why there is no other" if settings.device == "auto" else ""
    return Finding("device", f"cpu, {settings.threads} of {cpus} CPUs{why}")


def _lengths(settings: Settings, bundle: Bundle) -> Finding:
    try:
        bundle.require(settings.history_length, settings.list_length)
    except StreamWorkerError as error:
        return Finding.of("lengths", error)
    return Finding(
        "lengths",
        f"{settings.history_length} events are kept of a user, the model looks at {bundle.manifest.L}; lists of "
        f"{settings.list_length or bundle.manifest.K}",
    )


def _example(bundle: Bundle) -> Finding:
    try:
        bundle.check_example()
    except BundleError as error:
        return Finding.of("example", error)
    return Finding("example", "the graph gives here what it gave at export")


def _memory(settings: Settings, bundle: Bundle | None, partitions: int) -> Finding:
    """Room for partitions that are full: how many of them a worker has depends on the other workers."""
    if bundle is None:
        return _skipped("memory")
    user = bytes_of_user(settings.history_length, settings.excluded_length, settings.list_length or bundle.manifest.K)
    full = user * settings.max_users_per_partition
    own = PROCESS_BYTES + sum(tensor.nbytes for tensor in bundle.items.tensors.values())
    if kept := bundle.manifest.kept:
        cache = VectorCache(kept, settings.vector_cache_users, settings.vector_cache_precision)
        own += cache.slot_bytes * cache.most
    limit = memory_limit()
    room = max(0, limit - own) // full
    text = (
        f"at most {full / GIB:.2g} GiB a partition ({settings.max_users_per_partition:,} users of {user:,} bytes) "
        f"beside {own / GIB:.2g} GiB; of {limit / GIB:.3g} GiB here"
    )
    if not room:
        return Finding("memory", f"{text}: not even one full partition. Lower --max-users-per-partition.", "unwise")
    if partitions and room < partitions:
        workers = math.ceil(partitions / room) + 1
        return Finding(
            "memory",
            f"{text}: room for {room} full partitions of {partitions} in one worker. Run {workers} workers or more, so "
            "that one may fail, or lower --max-users-per-partition",
        )
    return Finding("memory", f"{text}: room for all partitions in one worker")


def memory_limit() -> int:
    """Bytes that this process may take: the container's, or the machine's."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        found = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return limit
    return min(limit, int(found)) if found.isdigit() else limit
