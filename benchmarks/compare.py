"""`python -m benchmarks.compare OLD NEW`: every figure of two results of `benchmarks.run --json`, and new over old.

Only results of like runs say anything; what differs in their load or machine is printed first.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

SETTING = ("benchmark", "machine", "bundle", "load", "seed", "smoke")
NO_FIGURES = frozenset({*SETTING, "repeats", "at_least", "at_most"})


def numbers(result: Mapping[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float]]:
    """Every figure, with the keys that lead to it."""
    for name, value in result.items():
        if name in NO_FIGURES:
            continue
        if isinstance(value, Mapping):
            yield from numbers(value, (*before, name))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield (*before, name), float(value)


def settings(result: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured, and on what."""
    loads = {f"load {name}": one["load"] for name, one in result.get("loads", {}).items()}
    return {name: result.get(name) for name in SETTING} | loads


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """A line for each figure of both, after those on what makes them hard to compare."""
    then, now = settings(old), settings(new)
    lines = [
        f"! {name}: {then.get(name)} then {now.get(name)}" for name in then | now if then.get(name) != now.get(name)
    ]
    before, after = dict(numbers(old)), dict(numbers(new))
    both = [path for path in before if path in after]
    width = max((len(" ".join(path)) for path in both), default=0)
    for path in both:
        ratio = f"{after[path] / before[path]:8.2f}" if before[path] else "       -"
        lines.append(f"{' '.join(path):{width}}  {before[path]:14,.2f} {after[path]:14,.2f} {ratio}")
    return [*lines, *(f"! only in one: {' '.join(path)}" for path in sorted(set(before) ^ set(after)))]


def main(argv: Sequence[str] | None = None) -> int:
    """Compare two files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    args = parser.parse_args(argv)
    try:
        old, new = (json.loads(path.read_bytes()) for path in (args.old, args.new))
    except (OSError, ValueError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    print("\n".join(compare(old, new)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
