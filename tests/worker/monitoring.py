"""A real Prometheus, a real Alertmanager, and who is told of the alerts."""

import json
import shutil
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from demo.broker import free_port
from tests import needs


class _Process:
    """A program of one's own, ended with the block; its log is `NAME.log`."""

    def __init__(self, directory: Path, name: str, command: Sequence[str]) -> None:
        with (directory / f"{name}.log").open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(20)


class Prometheus(_Process):
    """A server of one's own, scraping workers; with rules and an Alertmanager if given.

    Args:
        directory: for its files.
        targets: ports of the workers.
        rules: the text of a rule file.
        alertmanager: whom to tell.
        step: between two scrapes, and between two evaluations.
    """

    def __init__(
        self,
        directory: Path,
        targets: Sequence[int],
        rules: str = "",
        alertmanager: "Alertmanager | None" = None,
        step: str = "500ms",
    ) -> None:
        self.port = free_port()
        self.targets = directory / "targets.json"
        self.scrape(targets)
        config: dict[str, Any] = {
            "global": {"scrape_interval": step, "scrape_timeout": step, "evaluation_interval": step},
            "scrape_configs": [
                {
                    "job_name": "stream-worker",
                    "file_sd_configs": [{"files": [str(self.targets)], "refresh_interval": "500ms"}],
                }
            ],
        }
        if rules:
            (directory / "rules.yaml").write_text(rules)
            config["rule_files"] = [str(directory / "rules.yaml")]
        if alertmanager:
            targets_of = [{"targets": [f"127.0.0.1:{alertmanager.port}"]}]
            config["alerting"] = {"alertmanagers": [{"static_configs": targets_of}]}
        (directory / "prometheus.yml").write_text(json.dumps(config))
        flags = [f"--config.file={directory / 'prometheus.yml'}", f"--storage.tsdb.path={directory / 'tsdb'}"]
        flags += [f"--web.listen-address=127.0.0.1:{self.port}", "--rules.alert.resend-delay=1s"]
        super().__init__(directory, "prometheus", [needs.command("prometheus"), *flags])

    def scrape(self, targets: Sequence[int]) -> None:
        """Scrape these workers from now on."""
        fresh = self.targets.with_suffix(".fresh")
        fresh.write_text(json.dumps([{"targets": [f"127.0.0.1:{port}" for port in targets]}]))
        fresh.rename(self.targets)

    def query(self, promql: str) -> dict[str, float]:
        """An instant query: value by its labels, written as JSON."""
        url = f"http://127.0.0.1:{self.port}/api/v1/query?{urllib.parse.urlencode({'query': promql})}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                result = json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            with error:
                if error.code < 500:
                    raise ValueError(f"{promql}: {error.read().decode()}") from error
            return {}
        except OSError:
            return {}
        return {json.dumps(one["metric"], sort_keys=True): float(one["value"][1]) for one in result}


class Alertmanager(_Process):
    """Tells a webhook of every alert, at once."""

    def __init__(self, directory: Path, webhook: "Webhook") -> None:
        self.port = free_port()
        config = {
            "route": {"receiver": "test", "group_by": ["..."], "group_wait": "0s", "group_interval": "1s"},
            "receivers": [{"name": "test", "webhook_configs": [{"url": webhook.url, "send_resolved": True}]}],
        }
        (directory / "alertmanager.yml").write_text(json.dumps(config))
        program = shutil.which("alertmanager") or needs.command("prometheus-alertmanager")
        flags = [f"--config.file={directory / 'alertmanager.yml'}", f"--storage.path={directory / 'alertmanager'}"]
        flags += [f"--web.listen-address=127.0.0.1:{self.port}", "--cluster.listen-address="]
        super().__init__(directory, "alertmanager", [program, *flags])


class Webhook:
    """Receives what Alertmanager sends, and keeps it."""

    def __init__(self) -> None:
        self.alerts: list[dict[str, Any]] = []
        alerts = self.alerts

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                alerts.extend(json.loads(body)["alerts"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def told(self, name: str, status: str = "firing") -> list[dict[str, Any]]:
        """The alerts of that name with that status, oldest first."""
        return [one for one in self.alerts if (one["labels"]["alertname"], one["status"]) == (name, status)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
