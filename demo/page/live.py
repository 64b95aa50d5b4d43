"""The page's side of a run: what the buttons do, and what the browsers are told of the stream."""

import time

import msgspec

from demo.audience import Audience
from demo.ending import Ending
from demo.model import Data, Event
from demo.page.hub import Hub
from demo.page.notices import Notices
from demo.page.report import Report
from demo.replay import Sender
from demo.scrape import Workers
from demo.screen import Second
from demo.team import Team


class Live:
    """Between the stream and the page.

    `click`, `kill`, `start` and `keep` are the page's buttons and run on its threads; the rest is the main thread's.

    Args:
        data: what is replayed; a click carries the time at which the replay is, and so stands among its events.
        action: of a click.
        the others: the parts of the run.
    """

    def __init__(
        self, data: Data, action: str, sender: Sender, audience: Audience, team: Team, workers: Workers,
        report: Report, hub: Hub, ending: Ending,
    ) -> None:  # fmt: skip
        self._action = action
        self._sender = sender
        self._audience = audience
        self._team = team
        self._workers = workers
        self._report = report
        self._hub = hub
        self._ending = ending
        self._notices = Notices()
        self._clicked_at: dict[str, int] = {}  # by user: the log's time of the last click
        self._log_time = (data.replay[0].time_ms, time.monotonic())

    def click(self, user: str, item: str) -> tuple[int, int]:
        """Send an event. Returns its partition and offset.

        Raises:
            TransportError: Kafka does not take it.
        """
        event = {"user": user, "item": item, "action": self._action, "time": self._moment_of_click(user)}
        place = self._sender.send_now(user, msgspec.json.encode(event))
        self._audience.clicked(user, item)
        return place

    def kill(self, number: int) -> bool:
        """`kill -9`. Returns whether there was a process to kill."""
        done = self._team.kill(number)
        if done:
            self._say(self._notices.killed(number, time.monotonic()))
            self._tell_workers()
        return done

    def start(self, number: int) -> bool:
        """A worker comes back. Returns whether it was away."""
        done = self._team.ask_back(number)
        if done:
            self._say(f"Worker {number} is starting.")
        return done

    def keep(self) -> None:
        """Go on until Ctrl-C."""
        if not self._ending.kept:
            self._ending.keep()
            self._say("The demo goes on until Ctrl-C in its terminal.")

    def replayed(self, event: Event) -> None:
        """An event of the log was sent."""
        self._log_time = (event.time_ms, time.monotonic())

    def turn(self) -> None:
        """Do what only the main thread may."""
        for worker in self._team.do_errands():
            self._workers.retire(worker.port)
            self._tell_workers()

    def look(self, second: Second, events_left: int) -> None:
        """One more second."""
        self._hub.tell("figures", self._report.figures(second, events_left))
        for sentence in self._notices.look(self._report.holdings(), time.monotonic()):
            self._say(sentence)
        self._tell_workers()

    def _moment_of_click(self, user: str) -> int:
        """Now, by the log's time. States keep whole seconds: a second click in one would be a duplicate."""
        time_ms, at = self._log_time
        moment = time_ms + int((time.monotonic() - at) * 1000)
        moment = self._clicked_at[user] = max(moment, self._clicked_at.get(user, 0) + 1000)
        return moment

    def _tell_workers(self) -> None:
        self._hub.tell("workers", self._report.workers())

    def _say(self, text: str) -> None:
        self._hub.tell("notice", {"text": text, "at_s": round(time.time())})
