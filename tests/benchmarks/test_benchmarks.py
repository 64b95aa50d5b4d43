"""Every benchmark runs, and says what it always said; what it measures is no matter here."""

import json
from pathlib import Path

import pytest

from benchmarks.peers import environment
from benchmarks.run import BENCHMARKS, main
from demo.broker import Broker

HEAD = {"benchmark", "command", "date", "smoke", "machine"}
THROUGHPUT = {"events_per_s", "lists_per_s", "cpu_us_per_event", "cpu_us_per_list", "list_bytes", "rss_mib", "repeats"}
LATENCY = {"p50_ms", "p99_ms", "p99.9_ms", "cpu_us_per_event", "lists_per_event", "repeats"}
# name -> key -> the keys below it, or below each of its own
RESTORE = {"records_per_s", "seconds", "cpu_us_per_record", "repeats"}
LOAD = {
    "users", "fill_each", "warm_up", "backlog", "rates", "paced_s", "paced_warm_up_s", "repeats",
    "checkpoint_interval_s", "zipf",
}  # fmt: skip
CONTENDERS = {"worker", "echo", "worker-rdk", "echo-rdk"}
FLAGS = {"echo": ["--both-clients"], "peers": ["--loads", "zipf"]}
KEYS: dict[str, dict[str, set[str]]] = {
    "echo": {
        "seed": set(),
        "load": LOAD,
        "bundle": {"model", "items", "L", "K"},
        "backlog": CONTENDERS,
        "paced": {"100"},
        "stages_us_per_event": {"worker", "worker-rdk"},
        "bars": {
            "throughput_vs_echo",
            "p99_vs_echo",
            "idle_cpu_vs_echo",
            "throughput_vs_echo_librdkafka",
            "p99_vs_echo_librdkafka",
            "throughput_of_clients",
            "p99_of_clients",
            "paced_cpu_of_clients",
        },
    },
    "checkpoints": {
        "seed": set(),
        "load": LOAD,
        "bundle": {"model", "items", "L", "K"},
        "backlog": {"off", "1s", "5s"},
        "paced": {"100"},
        "checkpoints": {"backlog 1s", "backlog 5s", "paced 100 1s", "paced 100 5s"},
        "bars": {"throughput_1s", "throughput_5s", "p99_1s", "p99_5s", "cpu_1s", "cpu_5s"},
    },
    "catch-up": {
        "seed": set(),
        "load": {"users", "events", "repeats", "touched"},
        "worker": {
            "records_per_s",
            "cpu_us_per_record",
            "folded_s",
            "listed_s",
            "lists_while_folding",
            "lists_per_user",
            "mean_checkpoint_s",
            "rss_mib",
            "repeats",
        },
        "reader": {"records_per_s", "records", "seconds", "cpu_s", "repeats"},
        "bars": {"records_vs_reader"},
    },
    "soak": {
        "load": {"events", "bound", "churn", "warm_up", "burst"},
        "churn": {"events_per_s", "lists", "users", "evicted", "rss_mib", "flat", "most_over_least"},
        "burst": {"users_per_s", "users", "rss_mib", "flat", "most_over_least"},
        "bars": {"churn_rss", "burst_rss"},
    },
    "graphs": {
        "seed": set(),
        "load": {"items", "dim", "length", "repeats"},
        "models": {"sasrec", "hybrid"},
        "bars": {"hybrid_vs_sequence"},
    },
    "gpu": {
        "seed": set(),
        "device": set(),
        "limits": {"bytes_per_s", "flops"},
        "batches": {"304 x 4"},
        "bars": {"vs_torch 304 x 4"},
    },
    "host": {
        "seed": set(),
        "bundle": {"model", "items", "L", "K"},
        "load": {"events", "repeats"},
        "us_per_event": {"uniform", "zipf"},
        "bars": {"host_us"},
    },
    "idle": {
        "seed": set(),
        "load": {"seconds", "repeats"},
        "cores": CONTENDERS,
        "bars": {"idle_worker", "idle_worker-rdk"},
    },
    "incremental": {
        "seed": set(),
        "load": {"items", "dim", "lengths", "repeats"},
        "us_per_list": {"L 10, batch 1", "L 10, batch 32"},
        "caches": {"L 10, float32", "L 10, float16"},
        "bars": {"incremental_vs_recompute"},
    },
    "topk": {
        "seed": set(),
        "load": {"dim", "k", "excluded", "repeats"},
        "core": {"gflops", "gbytes_per_s"},
        "topk": {"2000", "53000"},
        "int8_overlap": {"2000", "53000"},
        "bars": {
            "topk_vs_faiss",
            "topk_vs_matmul_1",
            "topk_vs_matmul_32",
            "int8_vs_exact_2000_1",
            "int8_vs_exact_2000_32",
            "int8_vs_exact_53000_1",
            "int8_vs_exact_53000_32",
        },
    },
    "peers": {
        "seed": set(),
        "bundle": {"model", "items", "L", "K"},
        "loads": {"zipf"},
        "lists_that_agreed": set(),
        "bars": {
            "quix_zipf",
            "quix_zipf_librdkafka",
            "bytewax_zipf",
            "bytewax_zipf_librdkafka",
            "plain_zipf",
            "echo_zipf",
        },
    },
    "scaling": {
        "seed": set(),
        "load": {"users", "warm_up", "backlog", "repeats", "session_timeout_s"},
        "bundle": {"model", "items", "L", "K"},
        "workers": {"one", "two"},
        "bars": {"two_workers"},
    },
    "users": {
        "seed": set(),
        "load": {"users", "few", "mean_history", "backlog", "repeats"},
        "bundle": {"model", "items", "L", "K"},
        "workers": {"few", "many"},
        "bars": {"cpu_5m_vs_10k_users"},
    },
    "restore": {
        "seed": set(),
        "load": {"users", "mean_history", "repeats"},
        "empty_worker_rss_mib": set(),
        "worker": RESTORE | {"rss_mib", "peak_rss_mib", "rss_bytes_per_user"},
        "reader": RESTORE,
        "bars": {"records_vs_reader", "cpu_vs_reader", "bytes_per_user"},
    },
}


# `bars` runs the others.
@pytest.mark.parametrize("name", sorted(set(BENCHMARKS) - {"bars"}))
def test_smoke(name: str, broker: Broker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "peers" and not environment.is_there():
        pytest.skip("the peers' environment is not there: `python -m benchmarks.run peers --smoke` downloads it")
    file = tmp_path / "result.json"
    code = main([name, "--smoke", "--bootstrap", broker.bootstrap, "--json", str(file), *FLAGS.get(name, [])])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert "SMOKE" in printed.out
    result = json.loads(file.read_text())
    assert set(result) == HEAD | set(KEYS[name])
    for key, below in KEYS[name].items():
        assert not below or set(result[key]) == below, key
    if name == "peers":
        assert result["lists_that_agreed"] > 0
        assert all(set(figures) == THROUGHPUT for figures in result["loads"]["zipf"]["backlog"].values())
    if name == "echo":
        assert all(set(result["backlog"][one]) == THROUGHPUT for one in CONTENDERS)
        assert all(set(result["paced"]["100"][one]) == LATENCY for one in CONTENDERS)


def test_a_bundle_that_is_not_there_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["echo", "--smoke", "--bundle", str(tmp_path)]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path) in line
