"""Does the hub of pretrained weights answer? Where it does not, timm would try for a minute."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any
from urllib.parse import urlsplit

TIMEOUT = 3.0  # seconds


def hub_answers(timeout: float = TIMEOUT) -> bool:
    """Whether the hub can be reached within `timeout` seconds.

    When it cannot, this process works offline from here on: weights that were downloaded before
    are found in their cache, and others fail at once.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return False
    if _connects(timeout):
        return True
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants: Any = sys.modules.get("huggingface_hub.constants")
    if constants is not None:  # it has read the environment already
        constants.HF_HUB_OFFLINE = True
    return False


def _connects(timeout: float) -> bool:
    proxies = (os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy"))
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    url = urlsplit(next(filter(None, proxies), endpoint))
    port = url.port or (80 if url.scheme == "http" else 443)
    try:
        with socket.create_connection((url.hostname or "", port), timeout):
            return True
    except OSError:
        return False
