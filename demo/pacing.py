"""When each event is due: by deadlines from one start, so that a slow moment is made up and nothing drifts."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """`rate` events a second from `start` on; event 0 is due at the start. Times are seconds of one clock."""

    start: float
    rate: float

    def due(self, now: float) -> int:
        """How many events are due by `now`."""
        return int((now - self.start) * self.rate + 1e-9) + 1 if now >= self.start else 0

    def wait(self, sent: int, now: float) -> float:
        """Seconds until the next event, when so many are sent; 0 if it is due."""
        return max(0.0, self.start + sent / self.rate - now)
