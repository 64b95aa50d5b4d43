"""Settings: flags, variables, and what is said about wrong ones."""

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
