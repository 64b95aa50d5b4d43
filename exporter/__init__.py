"""The trainer: events in, a bundle out. May import `stream_worker`, never the reverse."""

import os

# OpenMP's threads spin while they wait for one another: by default so long that two threads beside any other work train
# 7 x slower than one. Some microseconds are enough. It must be set before torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
