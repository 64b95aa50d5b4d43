"""Memory: a real worker whose users churn far above its bound, and a partition that meets ever new users.

The first is a worker process on Kafka: its resident memory is looked at while it folds. The second is the state alone,
in this process, for as many distinct users as no broker would bring in an afternoon.
"""

import gc
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import bundles
from benchmarks.contenders import EVENTS, REJECTED, WorkerContender, place, worker
from benchmarks.errors import BenchmarkError
from benchmarks.load import FIRST_TIME_MS, Message, Producer, message
from benchmarks.topics import COMPACTED, Admin
from stream_worker import allocation
from stream_worker.events import Events
from stream_worker.messages import item_hash
from stream_worker.state import Actions, Partition

FLAT_BAR = 1.05  # most memory after the warm-up, over least, of the means of its tenths
PARTS = 10
ITEMS = 1000
AHEAD = 200_000  # events that wait for the worker at most, so that they do not all lie in the broker's page cache
TIMEOUT_S = 3600
LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    events: int = 5_000_000
    bound: int = 50_000  # users the worker may hold
    churn: int = 400_000  # users that are active at a time; each event makes one of them new
    warm_up: int = 1_000_000  # events
    burst: int = 100_000_000  # distinct users for the state alone


SMOKE = Size(events=20_000, bound=500, churn=4000, warm_up=10_000, burst=60_000)


def run(options: Any, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure; returns the result as it is written to JSON.

    Args:
        options: the flags of benchmarks/run.py.
        say: takes a line on how far it is.
    """
    size = SMOKE if options.smoke else Size()
    bundle = bundles.choose(options.bundle, options.smoke)
    with place(options.bootstrap) as here:
        admin = Admin(here.bootstrap)
        topics = [here.topic(EVENTS), here.topic(REJECTED), here.topic("worker")]
        admin.create(topics)
        admin.create([here.topic("worker-state")], COMPACTED)
        flags = ["--max-users-per-partition", str(size.bound)]
        contender = worker(here, bundle, flags=flags)
        producer = Producer(here.bootstrap, here.topic(EVENTS))
        try:
            contender.start()
            churn = _churn(contender, producer, size, say)
        finally:
            contender.kill()
            producer.close()
        admin.delete([*topics, here.topic("worker-state")])
        admin.close()
    say(f"{size.burst:,} distinct users, the state alone")
    burst = _burst(size)
    return {
        "load": asdict(size),
        "churn": churn,
        "burst": burst,
        "bars": {
            name: {"value": found["flat"], "at_most": FLAT_BAR, "met": found["flat"] <= FLAT_BAR}
            for name, found in (("churn_rss", churn), ("burst_rss", burst))
        },
    }


def _churn(contender: WorkerContender, producer: Producer, size: Size, say: Callable[[str], None]) -> dict[str, Any]:
    """Produce, never far ahead of the worker, and look at its memory.

    Raises:
        BenchmarkError: it took too long.
    """
    messages = _messages(size.churn)
    produced, start, rss_mib = 0, time.monotonic(), []
    while (folded := contender.totals()["events_total"]) < size.events:
        contender.check()
        if time.monotonic() > start + TIMEOUT_S:
            raise BenchmarkError(f"only {folded:,.0f} events folded after {TIMEOUT_S} s")
        if folded >= size.warm_up:
            rss_mib.append(contender.rss_mib())
        if produced < size.events and produced - folded < AHEAD:
            count = min(AHEAD // 4, size.events - produced)
            produced += producer.produce(itertools.islice(messages, count))
            say(f"{folded:,.0f} events folded, {contender.rss_mib():.0f} MiB")
        else:
            time.sleep(LOOK_EVERY_S)
    rss_mib.append(contender.rss_mib())
    totals = contender.totals()
    return {
        "events_per_s": size.events / (time.monotonic() - start),
        "lists": totals["lists_total"],
        "users": totals["users"],
        "evicted": totals["evicted_total"],
        **_memory(rss_mib),
    }


def _messages(churn: int) -> Iterator[Message]:
    """Events of users that come back a few times, and then never."""
    for number in itertools.count():
        user = number - (number * 7919) % churn  # one of the last `churn` that began, a new one now and then
        yield message(f"user{max(user, 0):08d}", f"item{number % ITEMS}", "view", FIRST_TIME_MS + number * 1000)


def _burst(size: Size) -> dict[str, Any]:
    allocation.keep_memory_flat()  # as a worker does
    state, actions = Partition(0, 64, 32, 20, max_users=size.bound), Actions()
    view, item = actions.code("view"), item_hash("item")
    rss_mib, start = [], time.monotonic()
    events = Events()
    for number in range(size.burst):
        events.add(f"user{number:08d}", item, FIRST_TIME_MS // 1000, view, number, FIRST_TIME_MS)
        if number % 10_000 == 0:
            state.fold(events, [False])
            events = Events()
            state.take_changed()  # as a checkpoint does
            state.evicted.clear()
            if number >= size.burst // 5 and number % (size.burst // 20 // 10_000 * 10_000 or 10_000) == 0:
                gc.collect()
                rss_mib.append(_own_rss_mib())
    return {
        "users_per_s": size.burst / (time.monotonic() - start),
        "users": len(state),
        **_memory(rss_mib),
    }


def _memory(rss_mib: list[float]) -> dict[str, float]:
    """What grows shows in the means of the tenths; the client's buffers of fetched records come and go within one."""
    means = [
        mean(rss_mib[at * len(rss_mib) // PARTS : (at + 1) * len(rss_mib) // PARTS] or rss_mib) for at in range(PARTS)
    ]
    return {
        "rss_mib": rss_mib[-1],
        "flat": max(means) / min(means),
        "most_over_least": max(rss_mib) / min(rss_mib),
    }


def _own_rss_mib() -> float:
    (line,) = [one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def table(result: Mapping[str, Any]) -> list[str]:
    """The result for people."""
    load, churn, burst = result["load"], result["churn"], result["burst"]
    lines = [
        f"churn  {load['events']:,} events of {load['churn']:,} users at a time, a bound of {load['bound']:,}: "
        f"{churn['users']:,.0f} held, {churn['evicted']:,.0f} evicted, {churn['lists']:,.0f} lists, "
        f"{churn['events_per_s']:,.0f} events/s, {churn['rss_mib']:.0f} MiB",
        f"burst  {load['burst']:,} distinct users on the state alone: {burst['users']:,} held, "
        f"{burst['users_per_s']:,.0f} users/s, {burst['rss_mib']:.0f} MiB",
        "",
        f"after the first {load['warm_up']:,} events, memory at single moments, most over least: "
        f"churn {churn['most_over_least']:.3f}, burst {burst['most_over_least']:.3f}; of the means of tenths",
    ]
    return lines + [
        f"  {name:10} {bar['value']:.3f}  bar <= {bar['at_most']:g}: {'met' if bar['met'] else 'NOT MET'}"
        for name, bar in result["bars"].items()
    ]
