"""Tell an address of alarms: one POST of JSON, tried again for a few minutes, on a thread of its own."""

from __future__ import annotations

import json
import logging
import re
import threading
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

from hasten.errors import InputError, visible

log = logging.getLogger("hasten.serving")

PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Pauses between tries."""
_PATIENCE_S = 10.0
_CHARACTERS = re.compile(r"[!-~]*")


def check_address(url: str) -> None:
    """Check that an address can be posted to.

    Raises:
        InputError: it can't. As it may contain a secret, the message doesn't show it.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        known, _ = parts.scheme in ("http", "https") and parts.hostname, parts.port
    except ValueError:  # its text would show a part of the address
        known = None
    if not known:
        raise InputError(
            "webhook= is an http:// or https:// address with a valid host and port; got another, which "
            "isn't shown as it may have a secret"
        )
    if "@" in parts.netloc:
        raise InputError(
            "webhook= can't have a user's name or a password before its host: put a secret into its "
            "path or query"
        )
    if not _CHARACTERS.fullmatch(url):
        raise InputError(
            "webhook= has a space, a control character or one that isn't ASCII: write each as %XX"
        )


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
    import http.client  # with the library for mails, a tenth of a server's imports
    import urllib.request

    class Straight(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: Any) -> None:
            """Follow nothing: a redirected POST would arrive as a GET without what it tells."""

    data = json.dumps(body).encode()
    opener = urllib.request.build_opener(Straight())
    where, why = urllib.parse.urlsplit(url).hostname, ""
    for pause_s in (*pauses_s, None):
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        try:
            with opener.open(request, timeout=_PATIENCE_S):
                told()
                return
        except OSError as error:  # urllib's errors are OSErrors
            why = visible(str(error))  # it quotes the other side's reason phrase
        except (ValueError, http.client.HTTPException) as error:
            # The text may show the address, or what came instead of HTTP.
            why = f"no valid answer over HTTP ({type(error).__name__})"
        if pause_s is None or over.wait(pause_s):
            break
    log.error(
        "the webhook at %s didn't receive an alarm: %.200s; the next start tries again", where, why
    )
