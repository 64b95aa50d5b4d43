"""When the demo is over."""


class Ending:
    """After a while, or when the events end; not at all before Ctrl-C once somebody has asked to keep it going.

    Args:
        duration_s: None for as long as there are events; 0 to keep it going from the start.
    """

    def __init__(self, duration_s: float | None) -> None:
        self._duration_s = duration_s or None
        self.kept = duration_s == 0

    def keep(self) -> None:
        """Go on until Ctrl-C."""
        self.kept = True

    def over(self, seconds: float, events_left: int) -> bool:
        """Whether it is, so many seconds after the start and with so many events to send."""
        return not self.kept and self.seconds_left(seconds, events_left, 1) == 0

    def seconds_left(self, seconds: float, events_left: int, rate: float) -> float | None:
        """Until the end, at so many events a second; None if it is kept going."""
        if self.kept:
            return None
        left = events_left / rate
        return left if self._duration_s is None else max(0.0, min(left, self._duration_s - seconds))
