"""What the tests share that run the demo: events, titles, and the model that the first of them trains."""

import random

import pytest

USERS, ITEMS, EVENTS = 40, 60, 5000


@pytest.fixture(scope="session")
def demo_variables(tmp_path_factory: pytest.TempPathFactory, seed: int) -> dict[str, str]:
    """Files and model as variables of the demo. One item often leads to the next, so that a list has its reasons."""
    directory, rng = tmp_path_factory.mktemp("demo"), random.Random(seed)
    last = dict.fromkeys(range(USERS), 0)
    rows = []
    for n in range(EVENTS):
        user = rng.randrange(USERS)
        last[user] = (last[user] + 1) % ITEMS if rng.random() < 0.6 else min(ITEMS - 1, int(rng.paretovariate(1)))
        rows.append(f"u{user},i{last[user]},{10**9 + 7 * n}")
    events, items = directory / "events.csv", directory / "items.csv"
    events.write_text("\n".join(["user,item,time", *rows]))
    items.write_text("\n".join(["item,title", *(f"i{n},Title {n}" for n in range(ITEMS))]))
    return {
        "DEMO_EVENTS": str(events), "DEMO_ITEMS": str(items), "DEMO_MODEL": "rules", "DEMO_DIR": str(directory),
    }  # fmt: skip
