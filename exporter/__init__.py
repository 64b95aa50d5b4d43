"""The trainer: events in, a bundle out. May import `stream_worker`, never the reverse."""

import os

# OpenMP's threads spin while they wait for one another; on a machine that does anything else that costs up to 7 x.
# It must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
