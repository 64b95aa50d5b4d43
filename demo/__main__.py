"""`make demo`: train, export, stream and watch, on this machine, with one command and nothing left behind."""

import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from rich.console import Console

from demo import model, screen
from demo.audience import Audience
from demo.children import Stop, Stopped
from demo.ending import Ending
from demo.figures import Figures
from demo.latency import Ledger
from demo.page.app import Controls, Page, create_app
from demo.page.hub import Hub
from demo.page.live import Live
from demo.page.report import Report
from demo.page.server import open_browser, serving
from demo.page.titles import Titles
from demo.preflight import problems
from demo.replay import Reader, await_lists, replay, sending
from demo.scrape import Workers
from demo.settings import DemoSettings, parse_settings
from demo.stack import Names, alone, await_ready, create_topics, own_broker, remove_topics, require_broker, workers
from demo.team import Team
from stream_worker.errors import SettingsError, StreamWorkerError
from stream_worker.manifest import Manifest, read_manifest
from stream_worker.reader import Recommendations

NEXT = {
    "make demo RATE=1000 DURATION=20": "faster; data, model and environment are there now",
    "make demo DURATION=0": "goes on, with its page, until Ctrl-C",
    "make demo BOOTSTRAP=host:port": "on a Kafka of yours",
    "make demo DEMO_EVENTS=events.csv": "on events of yours: columns user, item, time",
}

OFFERED = 5000  # titles to choose from on the page, the most popular ones

Say = Callable[[str], None]


def main() -> int:
    """Returns the exit code; a user's mistake is one line on stderr."""
    try:
        settings = parse_settings(sys.argv[1:], os.environ)
        found = list(problems(settings))
    except SettingsError as error:
        found = [str(error)]
    if found:
        print("\n".join(f"demo: {problem}" for problem in found), file=sys.stderr)
        return SettingsError.exit_code
    console = Console(highlight=False, soft_wrap=True, markup=False)
    try:
        with Stop() as stop, alone(settings.directory):
            run(settings, stop, console)
    except Stopped:
        console.print("stopped before the replay began; what was finished is kept for the next run")
    except StreamWorkerError as error:
        print(f"demo: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # such as `make demo | head`: nobody reads any more, and all is stopped
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def run(settings: DemoSettings, stop: Stop, console: Console) -> None:
    """From nothing to the summary."""
    say = partial(console.print)
    moment = time.time()
    with ExitStack() as stack:
        if settings.bootstrap:
            bootstrap, names = settings.bootstrap, Names.of_run(moment)
            require_broker(bootstrap)
            say(screen.labelled("kafka", f"{bootstrap}, not ours: it stays as it is"))
        else:
            broker = stack.enter_context(own_broker(settings.directory, settings.kafka_port))
            bootstrap, names = broker.bootstrap, Names()
            say(screen.labelled("kafka", f"{bootstrap}, Apache Kafka in KRaft mode; log: {screen.short(broker.log)}"))
        data = _data(settings, stop, say)
        bundle, manifest = _model(settings, data, stop, say)
        if settings.bootstrap:
            stack.callback(remove_topics, bootstrap, names)
        create_topics(bootstrap, names, settings.directory / "topics.log", stop)
        say(screen.labelled("topics", ", ".join(names.topics)))
        team = stack.enter_context(workers(settings, bootstrap, bundle, names))
        await_ready(team, stop)
        _say_how_to_watch(settings, bootstrap, names, team, data, say)
        summary = _stream(settings, bootstrap, names, data, bundle, manifest, team, stop, say)
        say("\nstopping the workers" + ("" if settings.bootstrap else " and Kafka"))
    say("\n" + summary)
    say(screen.labelled("logs", f"worker-1.log, worker-2.log and others in {screen.short(settings.directory)}"))
    say("\nNext:\n" + screen.commands(NEXT))


def _stream(
    settings: DemoSettings, bootstrap: str, names: Names, data: model.Data, bundle: Path, manifest: Manifest,
    team: Team, stop: Stop, say: Say,
) -> str:  # fmt: skip
    """Replay, with the figures on the terminal and on the page. Returns the summary."""
    ledger, audience, ending = Ledger(), Audience(data.popular), Ending(settings.duration)
    titles, scraped = Titles.of_bundle(bundle), Workers(settings.http_ports)
    figures = Figures(team, scraped, ledger, say)
    report = Report(team, scraped, ledger, audience, ending, settings.rate)
    with ExitStack() as stack:
        sender = stack.enter_context(sending(bootstrap, names.events, ledger))
        lists = stack.enter_context(Recommendations(bootstrap, names.recommendations))
        lists.wait_caught_up()  # the topic is empty; from here on no list slips by
        hub = Hub(titles, audience, lists.latest)
        reader = stack.enter_context(Reader(lists, ledger, hub.listed))
        live = Live(data, _action(manifest), sender, audience, team, scraped, report, hub, ending)
        controls = Controls(live.click, live.kill, live.start, live.keep)
        page = Page(hub, titles, [item for item in data.popular if item in titles][:OFFERED], controls)
        address = stack.enter_context(serving(create_app(page), hub, settings.page_port))
        _say_what_comes(settings, address, say)
        open_browser(address)

        def send(event: model.Event) -> None:
            audience.replayed(event.user, event.item, lists.latest(event.user))
            sender.send(event.user, event.value)
            live.replayed(event)

        def look(seconds: float, events_left: int) -> None:
            live.look(figures.look(reader, seconds), events_left)

        seconds = replay(data.replay, settings.rate, ending, send, look, live.turn, stop)
        sender.flush()
        await_lists(ledger)
        figures.last_look()
    return figures.summary(seconds, sender.failed, manifest, data.titles)


def _action(manifest: Manifest) -> str:
    """What a click on the page is, to this model."""
    return "view" if "view" in manifest.actions else next(iter(manifest.actions))


def _data(settings: DemoSettings, stop: Stop, say: Say) -> model.Data:
    events, items = model.fetch(settings, stop)
    data = model.load(events, items)
    total = data.trained + len(data.replay)
    say(
        screen.labelled(
            "data",
            f"{screen.short(events)}: {total:,} events; by time, the first {data.trained:,} train the model,",
            f"and the last {len(data.replay):,}, of {data.users:,} users, are replayed: it has not seen them",
        )
    )
    return data


def _model(settings: DemoSettings, data: model.Data, stop: Stop, say: Say) -> tuple[Path, Manifest]:
    bundle = model.kept_bundle(settings, data)
    kept = bundle is not None
    if bundle is None:
        say(screen.labelled("model", f"training {settings.model} (once; the next run takes it from here)"))
        bundle = model.train(settings, data, stop)
    manifest = read_manifest(bundle)
    checks = model.verify(bundle, settings.directory / "verify.log", stop)
    lines = [f"{manifest.model}{', from an earlier run' if kept else ''}; exporter verify: {checks} checks passed"]
    lines += [f"{name:12} HR@10 {hr:.3f}  NDCG@10 {ndcg:.3f}" for name, hr, ndcg in model.figures(manifest)]
    say(screen.labelled("model", *lines))
    return bundle, manifest


def _say_how_to_watch(
    settings: DemoSettings, bootstrap: str, names: Names, team: Team, data: model.Data, say: Say
) -> None:
    for worker in team.workers:
        say(screen.labelled(worker.name, f"pid {worker.child.pid}, http://localhost:{worker.port}/metrics"))
    item, last = data.popular[0], team.workers[-1].child.pid
    say("\nMeanwhile, in another terminal (kcat: apt-get install kcat):")
    say(screen.how_to_watch(bootstrap, names.events, names.recommendations, settings.http_port, item, last))


def _say_what_comes(settings: DemoSettings, address: str, say: Say) -> None:
    say(f"\nThe live page: {address}  click, see your list change, kill a worker")
    length = f"for {settings.duration:g} s" if settings.duration else "until the events end"
    if settings.duration == 0:
        length += ", and the page until Ctrl-C"
    say(f"\nReplaying {settings.rate:g} events/s {length}. Ctrl-C stops everything.\n")
    say("\n".join(screen.LEGEND))


if __name__ == "__main__":
    sys.exit(main())
