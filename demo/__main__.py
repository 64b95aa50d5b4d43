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
from demo.children import Child, Stop, Stopped
from demo.figures import Figures
from demo.latency import Ledger
from demo.preflight import problems
from demo.replay import await_lists, opened, replay
from demo.settings import DemoSettings, parse_settings
from demo.stack import Names, alone, await_ready, create_topics, own_broker, remove_topics, require_broker, workers
from stream_worker.errors import SettingsError, StreamWorkerError
from stream_worker.manifest import Manifest, read_manifest

NEXT = {
    "make demo RATE=1000 DURATION=20": "faster; data, model and environment are there now",
    "make demo BOOTSTRAP=host:port": "on a Kafka of yours",
    "make demo DEMO_EVENTS=events.csv": "on events of yours: columns user, item, time",
}

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
        children = stack.enter_context(workers(settings, bootstrap, bundle, names))
        await_ready(children, settings.http_ports, stop)
        _say_how_to_watch(settings, bootstrap, names, children, data, say)
        ledger = Ledger()
        figures = Figures(children, settings.http_ports, ledger, say)
        with opened(bootstrap, names.events, names.recommendations, ledger) as (sender, reader):
            seconds = replay(data.replay, settings.rate, settings.duration, sender, partial(figures.look, reader), stop)
            sender.flush()
            await_lists(ledger)
            figures.last_look()
        say("\nstopping the workers" + ("" if settings.bootstrap else " and Kafka"))
    say("\n" + figures.summary(seconds, sender.failed, manifest, data.titles))
    say(screen.labelled("logs", f"worker-1.log, worker-2.log and others in {screen.short(settings.directory)}"))
    say("\nNext:\n" + screen.commands(NEXT))


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
    settings: DemoSettings, bootstrap: str, names: Names, children: list[Child], data: model.Data, say: Say
) -> None:
    for child, port in zip(children, settings.http_ports, strict=True):
        say(screen.labelled(child.name, f"pid {child.pid}, http://localhost:{port}/metrics"))
    item = data.popular
    say("\nMeanwhile, in another terminal (kcat: apt-get install kcat):")
    say(screen.how_to_watch(bootstrap, names.events, names.recommendations, settings.http_port, item, children[-1].pid))
    length = f"for {settings.duration:g} s" if settings.duration else "until the events end"
    say(f"\nReplaying {settings.rate:g} events/s {length}. Ctrl-C stops everything.\n")
    say("\n".join(screen.LEGEND))


if __name__ == "__main__":
    sys.exit(main())
