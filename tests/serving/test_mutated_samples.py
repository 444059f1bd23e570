"""Pictures that were cut, flipped and spliced on their way: each is answered or refused, and the next is right."""

from __future__ import annotations

import concurrent.futures
import functools
import http.client
import io
import json
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fuzz.mutation import changed_bytes
from PIL import Image
from tests.support.models import COLOUR, COLOURS
from tests.support.servers import ServerThread, bundle_of, place_of

from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.config import image_pipeline
from hasten.testing import models

FORMS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
CLIENTS = 4
PATIENCE_S = 120.0


@functools.cache
def picture(colour: int, form: str) -> bytes:
    """Return an encoded picture of one colour."""
    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[..., colour] = 220
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerThread]:
    """A server of a classifier of colours, with its pipeline."""
    folder = tmp_path_factory.mktemp("colour")
    pipeline = Pipeline(image_pipeline(8).steps, (TopK(1, COLOURS, softmax=False),))
    bundle = bundle_of(folder, models.write(folder / "colour.onnx", COLOUR, {}), pipeline=pipeline)
    with ServerThread(place_of(bundle)) as running:
        yield running


def asked(connection: http.client.HTTPConnection, body: bytes) -> tuple[int, Any]:
    """Send one picture; return the status and the JSON that came."""
    connection.request("POST", "/v2/models/colour/infer", body, {"Content-Type": "image/jpeg"})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


@pytest.mark.parametrize("count", [300, pytest.param(6_000, marks=pytest.mark.slow)])
def test_whatever_comes_is_answered_or_refused_in_one_line_and_right_ones_rightly(
    server: ServerThread, count: int
) -> None:
    def one_client(seed: int) -> dict[int, int]:
        draw = random.Random(seed)
        connection = http.client.HTTPConnection(server.host, timeout=PATIENCE_S)
        statuses: dict[int, int] = {}
        for _ in range(count // CLIENTS):
            colour, form = draw.randrange(3), draw.choice(FORMS)
            whole = picture(colour, form)
            status, answer = asked(connection, changed_bytes(whole, draw))
            statuses[status] = statuses.get(status, 0) + 1
            if status == 200:
                (best,) = answer["decision"]
                assert best["label"] in COLOURS
            else:
                assert status == 400, answer
                assert "\n" not in answer["error"]
                assert len(answer["error"]) < 300
            status, answer = asked(connection, whole)
            assert (status, answer["decision"][0]["class"]) == (200, colour)
        connection.close()
        return statuses

    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as threads:
        found = list(threads.map(one_client, range(CLIENTS)))
    # Both happened: the test would say nothing if every change was harmless, or none was.
    assert all(sum(each.get(status, 0) for each in found) > count // 20 for status in (200, 400))
