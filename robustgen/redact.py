"""Words that are stored or printed, without the secrets that they may carry.

An exception may quote the URL that failed, or a token that a library was given; a command line may too.
What is stored of the environment is a list of versions, named one by one, and never the variables.
"""

from __future__ import annotations

import os
import re

SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY", re.IGNORECASE)
"""Names of environment variables whose values are nobody else's business."""
LOGIN = re.compile(r"(?<=://)[^/\s@]+@")
VALUE = re.compile(
    r"(?i)\b([\w-]*(?:token|secret|passw\w*|signature|credential|api_?key|access_?key)[\w-]*=)[^&\s'\"]+"
)
SHORTEST = 6  # a value of fewer letters would be found in innocent words


def redact(text: str) -> str:
    """The text without logins in URLs, without ``token=...`` and its kind, and without the values of
    environment variables that are named like secrets."""
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= SHORTEST:
            text = text.replace(value, f"[{name}]")
    return VALUE.sub(r"\1[...]", LOGIN.sub("[...]@", text))
