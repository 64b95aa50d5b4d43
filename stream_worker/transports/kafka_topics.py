"""Asks now and then whether the topics are still there: the clients say nothing when one is gone, they only retry."""

import math
import time
from collections.abc import Sequence
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer
from kafka.errors import KafkaError, UnknownTopicOrPartitionError
from kafka.protocol.metadata import MetadataRequest

from stream_worker.settings import Settings

ASK_INTERVAL_S = 5.0


class TopicWatch:
    """What the broker last said. Nobody waits for the answer, which comes on the client's IO thread."""

    def __init__(self, settings: Settings) -> None:
        s = settings
        self._names = (s.events_topic, s.recommendations_topic, s.rejected_topic, s.state_topic)
        self._missing: tuple[str, ...] = ()
        self._asked_at = -math.inf

    def missing(self, client: KafkaConsumer | KafkaAdminClient) -> Sequence[str]:
        """The topics that are not there; asks again, when it is time, through this client."""
        now = time.monotonic()
        if now - self._asked_at > ASK_INTERVAL_S:
            self._asked_at = now
            manager = client._manager  # noqa: SLF001 - the public ways wait for the answer
            manager.call_soon(self._ask, manager)
        return self._missing

    async def _ask(self, manager: Any) -> None:
        node = manager.least_loaded_node()
        if node is None:
            return
        request = MetadataRequest(
            topics=[MetadataRequest.MetadataRequestTopic(name=name) for name in self._names],
            allow_auto_topic_creation=False,
            include_cluster_authorized_operations=False,
            include_topic_authorized_operations=False,
        )
        try:
            response = await manager.send(request, node)
        except KafkaError:
            return
        unknown = UnknownTopicOrPartitionError.errno
        self._missing = tuple(sorted(topic.name for topic in response.topics if topic.error_code == unknown))
