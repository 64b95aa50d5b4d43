"""What a figure was measured on: the kind of machine, never its name."""

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

LIBRARIES = ("kafka-python", "numpy", "onnxruntime-gpu", "msgspec", "prometheus-client")


def describe() -> dict[str, str | int | float | dict[str, str]]:
    """For the head of a table and for the JSON."""
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    return {
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory[1]) / 2**20, 1) if memory else 0.0,
        "load_average": round(os.getloadavg()[0], 2),  # before the benchmark: what else was running
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in LIBRARIES},
    }
