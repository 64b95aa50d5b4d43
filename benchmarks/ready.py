"""What a contender that has no /readyz prints once it takes events."""

READY = "ready"
