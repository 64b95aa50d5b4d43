"""Settings: flags, variables, and what is said about wrong ones."""

import subprocess
import sys
from pathlib import Path

import pytest

from stream_worker.errors import SettingsError
from stream_worker.settings import Settings, TopicsSettings, parse_arguments, refuse_unknown_variables


def parse(*argv: str) -> Settings:
    return parse_arguments(Settings, argv, "stream-worker run")


def test_a_flag_wins_over_the_environment_over_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAM_WORKER_BUNDLE", "/env")
    monkeypatch.setenv("STREAM_WORKER_HISTORY_LENGTH", "7")
    settings = parse("--bundle", "/flag", "--no-exclude-seen")
    assert settings.bundle == Path("/flag")
    assert settings.history_length == 7
    assert settings.exclude_seen is False
    assert settings.excluding == {"purchase", "dislike", "hide"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], r"--bundle \(STREAM_WORKER_BUNDLE\) is required"),
        (["--bundle", "x", "--nope", "3"], r"Unrecognized arguments: --nope 3"),
        (["--bundle", "x", "--device", "tpu"], r"--device .*'auto', 'cpu' or 'cuda', not 'tpu'"),
        (["--bundle", "x", "--history-length", "0"], r"--history-length .*greater than or equal to 1, not '0'"),
        (["--bundle", "x", "--http-port", "soon"], r"--http-port .*integer"),
        (["--bundle", "x", "--delivery-timeout-s", "10"], r"delivery_timeout_s \(10\) must be below"),
        (["--bundle"], r"--bundle"),
        (["--bundle", "x", "--security-protocol", "SASL_SSL"], "needs sasl_username"),
        (
            ["--bundle", "x", "--security-protocol", "SASL_SSL", "--sasl-username", "u"],
            "SASL_PASSWORD, or sasl_password_f",
        ),
        (["--bundle", "x", "--sasl-username", "u"], "is PLAINTEXT: nothing uses it"),
        (["--bundle", "x", "--tls-ca-file", __file__], "is PLAINTEXT: nothing uses it"),
        (["--bundle", "x", "--security-protocol", "SSL", "--tls-key-file", __file__], "go together"),
        (["--bundle", "x", "--security-protocol", "SSL", "--tls-ca-file", "gone.pem"], r"--tls-ca-file .*'gone.pem'"),
        (["--bundle", "x", "--bootstrap", "localhost"], r"--bootstrap .*it should be host:port.*not 'localhost'"),
    ],
)
def test_a_wrong_setting_is_one_line_with_what_where_and_the_mend(argv: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        parse(*argv)
    assert "\n" not in str(caught.value)
    assert "--help" in str(caught.value)
    assert caught.value.exit_code == 2


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse("--bundle", "x").history_length = 3  # type: ignore[misc]


def test_an_unknown_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_unknown_variables([Settings, TopicsSettings])
    monkeypatch.setenv("STREAM_WORKER_HISTROY_LENGTH", "7")
    with pytest.raises(SettingsError, match="STREAM_WORKER_HISTROY_LENGTH: no such setting"):
        refuse_unknown_variables([Settings, TopicsSettings])


SASL = ("--bundle", "x", "--security-protocol", "SASL_SSL", "--sasl-username", "u")


def test_a_password_is_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for flag in ("--sasl-password", "--sasl-password=hunter2", "--sasl_password"):
        with pytest.raises(SettingsError, match="read by everybody") as caught:
            parse(*SASL, flag, "hunter2")
        assert "hunter2" not in str(caught.value)
    monkeypatch.setenv("STREAM_WORKER_SASL_PASSWORD", "hunter2")
    settings = parse(*SASL)
    assert settings.password == "hunter2"
    assert "hunter2" not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    with pytest.raises(SettingsError) as caught:
        parse(*SASL, "--sasl-password-file", __file__)
    assert "hunter2" not in str(caught.value)


def test_a_password_file_is_read_anew_and_must_hold_something(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("one\n")
    settings = parse(*SASL, "--sasl-password-file", str(file))
    assert settings.password == "one"
    file.write_text(" two words ")
    assert settings.password == " two words "
    file.write_text("\n")
    with pytest.raises(SettingsError, match="is empty"):
        _ = settings.password
    file.unlink()
    with pytest.raises(SettingsError, match=r"--sasl-password-file .*No such file"):
        _ = settings.password


def test_a_client_that_is_not_installed_is_said_with_its_extra() -> None:
    code = (
        "import sys; sys.modules['confluent_kafka'] = None\n"
        "from stream_worker.cli import main\n"
        "sys.exit(main(['run', '--bundle', 'x', '--client', 'librdkafka']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "the extra `librdkafka`" in line
