"""What a benchmark believes of its figures: which list covers which event, and that none is missing."""

from benchmarks.arena import Turn
from benchmarks.coverage import Coverage, Listed, Sample, Seen
from benchmarks.figures import paced, ratio, stages

TURN = Turn(
    events=10, lists=5, list_bytes=5000, seconds=2.0, cpu_s=1.0, samples=[], stages_s={}, checkpoints=2,
    checkpoints_s=0.1, states=6, rss_mib=1.0,
)  # fmt: skip


def test_a_list_is_timed_from_the_oldest_event_that_it_is_the_first_to_cover() -> None:
    coverage = Coverage()
    coverage.add_events([Seen(b"u", 0, 100), Seen(b"u", 1, 110), Seen(b"v", 2, 120), Seen(b"u", 3, 130)])
    samples = coverage.add_lists([Listed(b"u", 1, 150), Listed(b"v", 2, 151), Listed(b"u", 3, 160)])
    assert samples == [Sample(100, 50), Sample(120, 31), Sample(130, 30)]
    assert not coverage.missing


def test_a_repeated_or_older_list_is_no_sample() -> None:
    coverage = Coverage()
    coverage.add_events([Seen(b"u", 5, 100)])
    assert coverage.add_lists([Listed(b"u", 4, 150)]) == []
    assert coverage.add_lists([Listed(b"u", 5, 160), Listed(b"u", 5, 170)]) == [Sample(100, 60)]


def test_a_user_whose_last_event_no_list_covers_is_missing() -> None:
    coverage = Coverage()
    coverage.add_events([Seen(b"u", 0, 100), Seen(b"u", 1, 110), Seen(b"v", 2, 120)])
    coverage.add_lists([Listed(b"u", 0, 150), Listed(b"v", 2, 150)])
    assert coverage.missing == [b"u"]


def test_poll_is_the_rest_of_a_turn() -> None:
    found = stages([TURN._replace(stages_s={"poll": 99.0, "infer": 0.5, "fold": 0.3})])
    assert found["infer"] == 50_000
    assert found["poll"] == 120_000


def test_a_ratio_is_the_median_of_the_pairs_and_knows_its_bar() -> None:
    figures = {"worker": {"repeats": {"x": [1.0, 4.0, 3.0]}}, "echo": {"repeats": {"x": [10.0, 8.0, 10.0]}}}
    found = ratio(figures, "x", "worker", "echo", at_least=0.35)
    assert (found["value"], found["least"], found["most"], found["met"]) == (0.3, 0.1, 0.5, False)
    assert ratio(figures, "x", "worker", "echo", at_most=0.35)["met"] is True


def test_percentiles_are_of_the_lists() -> None:
    samples = [Sample(0, waited) for waited in range(101)]
    found = paced([TURN._replace(samples=samples)])
    assert (found["p50_ms"], found["p99_ms"]) == (50, 99)
