"""The figures of a run: a line a second while it goes on, and in the end what it came to."""

from collections.abc import Callable

from demo import screen
from demo.latency import Ledger, bucket_quantile, quantile
from demo.replay import Reader
from demo.scrape import Workers
from demo.team import Team
from stream_worker.errors import StreamWorkerError
from stream_worker.manifest import Manifest

HEADER_EVERY = 20


class Figures:
    """Looks at the stream once a second.

    Args:
        team, workers: the processes, and what they say on /metrics.
        ledger: what was sent and read.
        say: prints.
    """

    def __init__(self, team: Team, workers: Workers, ledger: Ledger, say: Callable[[str], None]) -> None:
        self._team = team
        self._workers = workers
        self._ledger = ledger
        self._say = say
        self._gone: set[int] = set()  # pids
        self._rejected = 0
        self._lines = 0
        self._before = (0.0, 0, 0)  # seconds, events, lists

    def look(self, reader: Reader, time_s: float) -> screen.Second:
        """Print a line, unless nothing happened, and return what it says.

        Raises:
            StreamWorkerError: no worker is left, or lists cannot be read.
        """
        self._workers.scrape()
        self._check(reader)
        before_s, before_events, before_lists = self._before
        waits = self._ledger.take()
        events, lists = self._ledger.events, self._ledger.lists
        self._before = (time_s, events, lists)
        second = screen.Second(
            time_s=time_s,
            events=(events - before_events) / (time_s - before_s),
            lists=(lists - before_lists) / (time_s - before_s),
            users=self._ledger.users,
            waits=waits,
            own=self._workers.quality("own"),
            default=self._workers.quality("default"),
        )
        if second.events or second.lists:  # a demo that is kept going has little to say
            if self._lines % HEADER_EVERY == 0:
                self._say("\n" + "\n".join(screen.HEADER))
            self._say(screen.line(second))
            self._lines += 1
        return second

    def last_look(self) -> None:
        """Take the last figures, while the workers still answer."""
        self._workers.scrape()
        self._ledger.take()

    def summary(self, seconds: float, failed: int, manifest: Manifest, titles: dict[str, str]) -> str:
        """What it came to."""
        ledger = self._ledger
        counts = [f"{ledger.events:,} events in {seconds:.1f} s, {ledger.lists:,} lists for {ledger.users:,} users"]
        counts += [f"{ledger.waiting:,} events that no list covers"] * bool(ledger.waiting)
        counts += [f"{self._rejected:,} events rejected"] * bool(self._rejected)
        counts += [f"{failed:,} events that Kafka did not take"] * bool(failed)
        sums = self._workers.buckets("event_to_list_seconds")
        seen = screen.quantiles(quantile(ledger.waits, 0.5), quantile(ledger.waits, 0.99))
        told = screen.quantiles(bucket_quantile(sums, 0.5), bucket_quantile(sums, 0.99))
        own, default = self._workers.quality("own"), self._workers.quality("default")
        live = f"{screen.share(own.hit_rate)} own lists ({own.judged:,} events)"
        live += f", {screen.share(default.hit_rate)} default list ({default.judged:,} events)"
        blocks = [
            screen.labelled("streamed", "; ".join(counts)),
            screen.labelled(
                "event to list",
                f"{seen}: from sending to reading, all of this run",
                f"{told}: from Kafka's timestamp to Kafka's acknowledgement, by the workers' /metrics",
            ),
            screen.labelled("HR@10", f"live    {live}", *_offline(manifest)),
        ]
        if found := ledger.example():
            blocks.append(screen.labelled("one list", *screen.example(found, titles)))
        return "\n".join(blocks)

    def _check(self, reader: Reader) -> None:
        if reader.problem:
            raise StreamWorkerError(f"lists cannot be read: {reader.problem}")
        for worker in self._team.workers:
            child = worker.child
            if worker.runs or child.pid in self._gone:
                continue
            self._gone.add(child.pid)
            if worker.killed:
                self._say(f"       {child.name} was killed on the page, which can also bring it back")
                continue
            self._say(f"       {child.name} has ended ({child.how_it_ended()}); its log ends with:")
            self._say(f"       {child.last_words()}")
        if (rejected := self._workers.total("rejected")) > self._rejected:
            self._rejected = rejected
            self._say(f"       {rejected:,} events rejected so far; the topic of rejected events says why")
        if self._team.lost:
            raise StreamWorkerError("no worker is left; see above.")


def _offline(manifest: Manifest) -> list[str]:
    """The trainer's figures of the same events, with histories as long as a worker keeps them."""
    report = manifest.report
    if "served_hr@10" not in report:
        return []
    figures = f"{screen.share(report['served_hr@10'])} {manifest.name}"
    figures += f", {screen.share(report['served_popularity_hr@10'])} popularity"
    return [
        f"offline {figures}: the trainer's figures for all events of this part;",
        "        there no list comes too late, and earlier events of a user are known",
    ]
