"""The page's HTTP interface on its real server: who may do what, and which list answers which click."""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from demo.audience import Audience
from demo.broker import HOST, free_port
from demo.page.app import Controls, Page, create_app
from demo.page.hub import LIST_EVERY_S, Hub
from demo.page.server import serving
from demo.page.titles import Title, Titles
from stream_worker.errors import TransportError
from stream_worker.messages import TopK, encode_list
from stream_worker.reader import Newest, Update

TITLES = Titles({f"i{n}": Title(f"i{n}", f"Title {n}", "") for n in range(20)})
POPULAR = [f"i{n}" for n in range(20)]


def a_list(user: str, offset: int, published_ms: int) -> TopK:
    return TopK(
        user=user, items=["i7", "i8"], scores=[2.0, 1.0], because=["i1", None], model="m", variant="a",
        events=offset + 1, event_time=0, received_time=published_ms - 3, published_time=published_ms,
        partition=1, offset=offset,
    )  # fmt: skip


class Stage:
    """A page on its real server; the test is Kafka and the workers, and says when a list appears."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.newest = Newest()
        self.offset = -1
        self.did: list[str] = []
        self.refuses = False
        self.answer_first = False
        self.hub = Hub(TITLES, Audience(POPULAR), self._latest)
        controls = Controls(self._click, self._kill, self._kill, lambda: self.did.append("keep"))
        self.app = create_app(Page(self.hub, TITLES, POPULAR[:5], controls))

    def publish(self, user: str, offset: int, after_ms: int = 0) -> None:
        """A list that covers the events up to this offset."""
        update = self.newest.take(user, encode_list(a_list(user, offset, int(time.time() * 1000) + after_ms)))
        assert update is not None
        self.hub.listed(Update(user, update.top))

    def request(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, str, dict[str, str]]:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=10)
        sent = {"Host": f"localhost:{self.port}", "Origin": f"http://localhost:{self.port}"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        try:
            connection.request(method, path, body if isinstance(body, str | None) else json.dumps(body), sent)
            reply = connection.getresponse()
            return reply.status, reply.read().decode(), {name.lower(): value for name, value in reply.getheaders()}
        finally:
            connection.close()

    def click(self, user: str, number: int) -> None:
        body = {"id": f"c{number}", "user": user, "item": "i3"}
        assert self.request("POST", "/clicks", body)[0] == 204

    @contextmanager
    def watching(self, user: str) -> Iterator["Events"]:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=10)
        connection.request("GET", f"/live?user={user}", headers={"Host": f"localhost:{self.port}"})
        reply = connection.getresponse()
        assert reply.status == 200
        assert reply.getheader("content-type", "").startswith("text/event-stream")
        try:
            yield Events(reply)
        finally:
            reply.close()
            connection.close()

    def _latest(self, user: str) -> TopK | None:
        try:
            return self.newest[user]
        except KeyError:
            return None

    def _click(self, user: str, item: str) -> tuple[int, int]:
        if self.refuses:
            raise TransportError("the broker is away")
        self.offset += 1
        if self.answer_first:  # the worker is quicker than the acknowledgement
            self.publish(user, self.offset, after_ms=5)
        return 1, self.offset

    def _kill(self, number: int) -> bool:
        if number > 2:
            raise KeyError(number)
        self.did.append(f"worker {number}")
        return number == 1


class Events:
    """A browser's EventSource."""

    def __init__(self, reply: http.client.HTTPResponse) -> None:
        self._reply = reply

    def next(self, kind: str) -> Any:
        """The next message of a kind; others are passed over."""
        found = ""
        while line := self._reply.readline().decode():
            name, _, value = line.rstrip("\n").partition(": ")
            if name == "event":
                found = value
            elif name == "data" and found == kind:
                return json.loads(value)
        raise AssertionError(f"the stream ended before a {kind}")


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage(free_port())
    with serving(stage.app, stage.hub, stage.port):
        yield stage


def test_a_click_is_answered_by_the_first_list_that_knows_of_it(stage: Stage) -> None:
    with stage.watching("me") as events:
        first = events.next("list")
        assert (first["own"], first["rows"][0]["title"]) == (False, "Title 0")
        stage.click("me", 1)
        stage.click("me", 2)
        stage.publish("me", 0, after_ms=40)
        found = events.next("list")
        assert [answer["id"] for answer in found["answers"]] == ["c1"]
        assert 40 <= found["answers"][0]["ms"] < 5000
        assert (found["own"], found["events"], found["partition"], found["wait_ms"]) == (True, 1, 1, 3)
        assert found["rows"][0] == {"item": "i7", "title": "Title 7", "detail": "", "score": 2.0, "because": "Title 1"}
        stage.publish("me", 1)
        assert [answer["id"] for answer in events.next("list")["answers"]] == ["c2"]


def test_a_list_that_is_quicker_than_the_acknowledgement_answers_too(stage: Stage) -> None:
    stage.answer_first = True
    with stage.watching("me") as events:
        events.next("list")
        stage.click("me", 1)
        while not (found := events.next("list"))["answers"]:
            pass  # the list may be shown before it is known to answer
        assert [answer["id"] for answer in found["answers"]] == ["c1"]


def test_lists_that_nobody_clicked_for_come_in_bearable_numbers_and_the_last_one_comes(stage: Stage) -> None:
    with stage.watching("u1") as events:
        events.next("list")
        start = time.monotonic()
        for offset in range(50):
            stage.publish("u1", offset)
        seen = [events.next("list")["offset"]]
        while seen[-1] != 49:
            seen.append(events.next("list")["offset"])
        assert len(seen) <= 2 + (time.monotonic() - start) / LIST_EVERY_S
        assert seen == sorted(seen)


def test_lists_of_others_are_not_told(stage: Stage) -> None:
    with stage.watching("me") as events:
        events.next("list")
        stage.publish("u1", 0)
        stage.publish("me", 0)
        assert events.next("list")["user"] == "me"


def test_a_browser_that_goes_is_forgotten(stage: Stage) -> None:
    with stage.watching("me") as events:
        events.next("list")
        assert stage.hub.watched == 1
    deadline = time.monotonic() + 10
    while stage.hub.watched:
        stage.hub.tell("figures", {})
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_who_comes_later_hears_what_was_said_before(stage: Stage) -> None:
    stage.hub.tell("notice", {"text": "one"})
    stage.hub.tell("figures", {"events_s": 1})
    stage.hub.tell("figures", {"events_s": 2})
    with stage.watching("me") as events:
        assert events.next("figures") == {"events_s": 2}
        assert events.next("notice") == {"text": "one"}


def test_at_the_end_every_browser_is_told_and_the_port_is_free() -> None:
    stage = Stage(free_port())
    heard: list[object] = []
    with serving(stage.app, stage.hub, stage.port), stage.watching("me") as events:
        events.next("list")
        listener = threading.Thread(target=lambda: heard.append(events.next("end")))
        listener.start()
        stage.hub.close()
        listener.join(10)
    assert heard == [{}]
    with serving(stage.app, stage.hub, stage.port):
        pass


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [("POST", "/clicks", {"Origin": "http://evil.example"}),
     ("POST", "/workers/1/kill", {"Origin": "null"}),
     ("POST", "/workers/1/kill", {"Origin": "http://localhost:1"}),
     ("POST", "/keep", {"Origin": ""})],
)  # fmt: skip
def test_only_the_page_itself_may_change_something(
    stage: Stage, method: str, path: str, headers: dict[str, str]
) -> None:
    status, _, _ = stage.request(method, path, None, **headers)
    assert status == 403
    assert stage.did == []


def test_a_foreign_name_that_leads_here_is_refused(stage: Stage) -> None:
    """DNS rebinding: the origin matches the host, but the host is not ours."""
    status, _, _ = stage.request("POST", "/keep", Host="evil.example", Origin="http://evil.example")
    assert status == 400
    assert stage.request("GET", "/", Host="evil.example")[0] == 400
    assert stage.did == []


def test_what_changes_something_is_a_post(stage: Stage) -> None:
    for path in ("/clicks", "/workers/1/kill", "/workers/1/start", "/keep"):
        assert stage.request("GET", path)[0] == 405
    assert stage.did == []


def test_every_response_has_the_policy(stage: Stage) -> None:
    for path in ("/", "/page.css", "/page.js", "/icon.svg", "/titles", "/nothing"):
        status, body, headers = stage.request("GET", path)
        assert status == (404 if path == "/nothing" else 200)
        assert "default-src 'none'; script-src 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        if path.startswith("/page"):
            assert "http" not in body.replace("http://www.w3.org", ""), "nothing comes from elsewhere"


def test_the_titles_to_choose_from_are_the_offered_ones(stage: Stage) -> None:
    _, body, _ = stage.request("GET", "/titles")
    assert [title["item"] for title in json.loads(body)] == POPULAR[:5]


@pytest.mark.parametrize(
    "body",
    ["", "[]", "{}", {"id": "c", "user": "me", "item": "unknown"}, {"id": "c", "user": "*", "item": "i1"},
     {"id": "c", "user": "a\nb", "item": "i1"}, {"id": "c", "user": "me", "item": "i1", "more": 1}, "x" * 5000],
    ids=["empty", "list", "no-fields", "unknown-item", "reserved-user", "control-character", "more", "long"],
)  # fmt: skip
def test_a_click_that_is_none_is_refused(stage: Stage, body: object) -> None:
    assert stage.request("POST", "/clicks", body)[0] == 400
    assert stage.offset == -1


def test_the_buttons_say_what_came_of_it(stage: Stage) -> None:
    assert stage.request("POST", "/workers/1/kill")[0] == 204
    assert stage.request("POST", "/workers/2/start")[0] == 409
    assert stage.request("POST", "/workers/3/kill")[0] == 404
    assert stage.request("POST", "/workers/x/kill")[0] == 404
    assert stage.request("POST", "/keep")[0] == 204
    assert stage.did == ["worker 1", "worker 2", "keep"]
    stage.refuses = True
    status, text, _ = stage.request("POST", "/clicks", {"id": "c", "user": "me", "item": "i1"})
    assert (status, text) == (503, "the broker is away")
    assert stage.request("GET", "/live?user=*")[0] == 400
