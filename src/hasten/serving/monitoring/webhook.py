"""Tell an address of alarms: one POST of JSON, tried again for a few minutes, on a thread of its own."""

from __future__ import annotations

import json
import logging
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from hasten.errors import InputError, visible

log = logging.getLogger("hasten.serving")

PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Pauses between tries."""
_PATIENCE_S = 10.0


def check_address(url: str) -> None:
    """Check that an address can be posted to.

    Raises:
        InputError: it isn't one of HTTP.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"webhook= is an http:// or https:// address; got {url!r:.200}")


class _Straight(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follow nothing: a redirected POST would arrive as a GET without what it tells."""


def post(
    url: str,
    body: Mapping[str, Any],
    told: Callable[[], None],
    over: threading.Event,
    pauses_s: tuple[float, ...] = PAUSES_S,
) -> threading.Thread:
    """Begin to post JSON to an address, until it answers with 2xx or the pauses are used up.

    Args:
        url: Address.
        body: Value to post.
        told: Callback for when it has answered, on the posting thread.
        over: Event that ends the tries.
        pauses_s: Pauses between tries, in seconds.

    Returns:
        The thread that posts.
    """
    thread = threading.Thread(
        target=_post, args=(url, body, told, over, pauses_s), name="hasten-webhook", daemon=True
    )
    thread.start()
    return thread


def _post(
    url: str,
    body: Mapping[str, Any],
    told: Callable[[], None],
    over: threading.Event,
    pauses_s: tuple[float, ...],
) -> None:
    data = json.dumps(body).encode()
    opener = urllib.request.build_opener(_Straight())
    where, why = urllib.parse.urlsplit(url).hostname, ""
    for pause_s in (*pauses_s, None):
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        try:
            with opener.open(request, timeout=_PATIENCE_S):
                told()
                return
        except (OSError, ValueError) as error:  # urllib's errors are OSErrors
            why = visible(str(error))  # it quotes the other side's reason phrase
        if pause_s is None or over.wait(pause_s):
            break
    log.error(
        "the webhook at %s didn't receive an alarm: %.200s; the next start tries again", where, why
    )
