"""Workers that are killed and brought back, as real processes; and what they counted before."""

import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.broker import free_port
from demo.scrape import Workers
from demo.team import Team

SLEEPER = ["-c", "import time; print('alive', flush=True); time.sleep(600)"]


@pytest.fixture
def team(tmp_path: Path) -> Iterator[Team]:
    team = Team([(1000 + number, tmp_path / f"worker-{number}.log", SLEEPER) for number in (1, 2)])
    yield team
    team.stop()
    assert not any(worker.runs for worker in team.workers)


def test_a_worker_is_killed_and_brought_back_by_the_main_thread_alone(team: Team, tmp_path: Path) -> None:
    worker = team.workers[1]
    pid = worker.child.pid
    assert team.kill(2)
    assert not worker.runs
    assert worker.child.how_it_ended() == "killed by SIGKILL"
    assert not team.kill(2), "there is nothing to kill"
    asker = threading.Thread(target=team.ask_back, args=(2,))
    asker.start()
    asker.join()
    assert not worker.runs, "it waits for the main thread"
    team.ask_back(2)  # another browser has asked, too
    assert team.do_errands() == [worker]
    assert worker.runs
    assert worker.child.pid != pid
    assert not team.ask_back(2), "it runs"
    assert team.do_errands() == []


def test_the_log_of_a_worker_goes_on_after_the_kill(team: Team, tmp_path: Path) -> None:
    log = tmp_path / "worker-1.log"
    await_text(log, "alive\n")
    team.kill(1)
    team.ask_back(1)
    team.do_errands()
    await_text(log, "alive\nalive\n")


def test_the_team_is_lost_only_if_nobody_wanted_its_end(team: Team) -> None:
    team.kill(1)
    team.kill(2)
    assert not team.lost, "the page can bring them back"
    team.ask_back(1)
    (worker,) = team.do_errands()
    worker.child.ask()
    worker.child.join(10)
    assert not team.lost, "worker 2 was killed on purpose"
    team.workers[1].killed = False
    assert team.lost


def test_there_is_no_worker_of_any_number(team: Team) -> None:
    for call in (team.kill, team.ask_back):
        with pytest.raises(KeyError):
            call(3)


def test_what_a_worker_counted_before_its_end_still_counts() -> None:
    """A real server of metrics that begins anew, as a worker does after kill -9."""
    port = free_port()
    workers = Workers([port])
    for life, count in enumerate((5, 2), start=1):
        with serving_metrics(port, count):
            workers.scrape()
        assert workers.gauges(port, "users") == [({"partition": "0"}, float(count))]
        if life == 1:
            workers.scrape()  # nobody answers
            assert workers.total("judged", list="own") == 5
            workers.retire(port)
            assert workers.gauges(port, "users") == []
    assert workers.total("judged", list="own") == 7


class serving_metrics:
    """Serves one counter and one gauge of this value."""

    def __init__(self, port: int, value: int) -> None:
        text = f'stream_worker_judged_total{{list="own"}} {value}\nstream_worker_users{{partition="0"}} {value}\n'

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.HTTPServer(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def await_text(path: Path, wanted: str) -> None:
    deadline = time.monotonic() + 30
    while path.read_text() != wanted:
        assert time.monotonic() < deadline, path.read_text()
        time.sleep(0.01)
