"""A certificate authority of one's own, for a broker with TLS: made with openssl, thrown away with its folder."""

import subprocess
from pathlib import Path

KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class Authority:
    """Makes its own certificate in the folder; clients that trust `ca` trust what it issues."""

    def __init__(self, folder: Path, name: str = "stream-worker test CA") -> None:
        self._folder = folder
        self.ca = folder / "ca.pem"
        folder.mkdir(parents=True, exist_ok=True)
        self._openssl(
            "req", "-x509", *KEY, "-keyout", "ca.key", "-out", "ca.pem", "-days", "30", "-subj", f"/CN={name}"
        )

    def issue(self, name: str, days: int = 30) -> Path:
        """A file with a private key and its certificate for 127.0.0.1; negative `days`: it has expired."""
        extensions = self._folder / f"{name}.ext"
        extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
        self._openssl("req", *KEY, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        self._openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", str(days), "-extfile", extensions.name, "-out", f"{name}.crt",
        )  # fmt: skip
        both = self._folder / f"{name}.pem"
        parts = [(self._folder / f"{name}.{end}").read_text() for end in ("key", "crt")]
        both.write_text("".join(parts))
        both.chmod(0o600)
        return both

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self._folder, check=True, capture_output=True)
