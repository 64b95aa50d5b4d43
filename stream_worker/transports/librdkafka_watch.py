"""Questions to the broker that nobody waits for: whether we are a member of the group, and which topics there are.

librdkafka does not tell when a heartbeat was answered. So the group is asked who is in it: nobody can have had our
partitions before a list with our member id was made. The question goes through kafka-python, on its IO thread:
librdkafka 2.16 ends the process ("refcnt > 0") if a question to a group is not answered in time.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from stream_worker.entrance import away, made
from stream_worker.settings import Settings
from stream_worker.topics import admin_options
from stream_worker.transports.kafka_topics import TopicWatch

ASK_INTERVAL_S = 1.0
ANSWER_TIMEOUT_S = 5.0


class Watch:
    """What the broker last said; connects at once.

    Raises:
        StreamWorkerError: no broker answers, or not to us.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topic_watch = TopicWatch(settings)
        self._contact_at = self._asked_at = -math.inf
        self._member = ""
        self._answer: Any = None
        timeout_ms = int(ANSWER_TIMEOUT_S * 1000)
        try:
            self._admin = made(KafkaAdminClient, admin_options(settings) | {"request_timeout_ms": timeout_ms})
        except KafkaError as error:
            raise away(settings, error) from error

    def contact_age_s(self, member_id: str) -> float:
        """Age of our last question to the group that was answered with a list of members that has this one.

        Asks again when it is time.
        """
        now = time.monotonic()
        if self._answer is not None and self._answer.is_done:
            if self._member == member_id and self._names(member_id):
                self._contact_at = self._asked_at
            self._answer = None
        waited_s = now - self._asked_at
        if member_id and waited_s > (ASK_INTERVAL_S if self._answer is None else 2 * ANSWER_TIMEOUT_S):
            self._member, self._asked_at = member_id, now
            self._answer = self._admin._manager.call_soon(self._ask)
        return now - self._contact_at

    def missing(self) -> Sequence[str]:
        """The topics that are not there; asks again when it is time."""
        return self._topic_watch.missing(self._admin)

    def topic_id(self) -> str:
        """Of the events topic; waits for the answer.

        Raises:
            KafkaError: there is none.
        """
        return str(self._admin.describe_topics([self._settings.events_topic])[0]["topic_id"])

    def close(self) -> None:
        """Disconnect."""
        self._admin.close()

    async def _ask(self) -> Any:
        """On the IO thread."""
        group = self._settings.group
        found = (await self._admin._async_describe_groups([group]))[group]
        if found["error"]:  # the coordinator has moved, say: find it anew
            self._admin._manager.cluster._coordinators.clear()
        return found

    def _names(self, member_id: str) -> bool:
        if not self._answer.succeeded():
            return False
        return any(member["member_id"] == member_id for member in self._answer.value.get("members", ()))
