"""What a worker costs while nothing happens: its share of a core, on each client, beside an echo that only polls."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import bundles, figures
from benchmarks.beside_echo import SECOND
from benchmarks.contenders import CLIENTS, EVENTS, REJECTED, Contender, echo, place, worker
from benchmarks.topics import COMPACTED, Admin

BARS = {"worker": 0.03, f"worker{SECOND}": 0.01}
SETTLE_S, SECONDS, REPEATS = 5.0, 10.0, 3


def run(options: Any, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure; returns the result as it is written to JSON.

    Args:
        options: the flags of benchmarks/run.py.
        say: takes a line on how far it is.
    """
    settle_s, seconds, repeats = (0.5, 0.5, 1) if options.smoke else (SETTLE_S, SECONDS, options.repeats or REPEATS)
    bundle = bundles.choose(options.bundle, options.smoke)
    shares: dict[str, list[float]] = {}
    with place(options.bootstrap) as here:
        admin = Admin(here.bootstrap)
        admin.create([here.topic(EVENTS), here.topic(REJECTED)])
        contenders: list[Contender] = [
            worker(here, bundle),
            worker(here, bundle, f"worker{SECOND}", flags=["--client", CLIENTS[1]]),
            echo(here, 1000),
            echo(here, 1000, f"echo{SECOND}", CLIENTS[1]),
        ]
        try:
            for one in contenders:
                admin.create([one.topic])
                if one.state_topic is not None:
                    admin.create([one.state_topic], COMPACTED)
                one.start()
                time.sleep(settle_s)
                one.pause()
            for number in range(repeats):
                for one in contenders:
                    say(f"repeat {number + 1} of {repeats}: {one.name}")
                    one.resume()
                    time.sleep(settle_s)
                    before_s, start = one.cpu_s(), time.monotonic()
                    time.sleep(seconds)
                    used_s = one.cpu_s() - before_s
                    shares.setdefault(one.name, []).append(used_s / (time.monotonic() - start))
                    one.pause()
            for one in contenders:
                one.stop()
        finally:
            for one in contenders:
                one.kill()
            admin.close()
    return {
        "seed": options.seed,
        "load": {"seconds": seconds, "repeats": repeats},
        "cores": {name: figures.medians([{"share_of_a_core": one} for one in each]) for name, each in shares.items()},
        "bars": {f"idle_{name}": figures.bar(shares[name], at_most=limit) for name, limit in BARS.items()},
    }


def table(result: Mapping[str, Any]) -> list[str]:
    """The result for people."""
    load = result["load"]
    return [
        f"no events; CPU over {load['seconds']:g} s, {load['repeats']} repeats in turns, medians",
        *figures.rows(result["cores"]),
        "",
        *figures.verdicts(result["bars"]),
    ]
