"""Code of the user's own, named in a setting as `package.module:name`."""

import importlib
import os
import sys
from typing import Any

from stream_worker.errors import SettingsError


def load(name: str, setting: str) -> Any:
    """Import "package.module:name", from the installed packages or the working directory.

    Args:
        name: what to import.
        setting: which setting says so, for the message.

    Raises:
        SettingsError: there is no such thing, or importing it fails.
    """
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # an installed command does not look there, `python -m` does
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the user's module raises
        raise SettingsError(
            f"{setting} {name!r}: {type(error).__name__}: {error}. Name it as package.module:name."
        ) from error
