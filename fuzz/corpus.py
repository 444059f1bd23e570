"""Inputs that did harm once, made again from what they consist of; every run begins with them.

Their causes are fixed, and have tests of their own. Here the fuzzers' limits hold for them: on time, on memory, and on
how long another client waits.
"""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from fuzz.served import HEADS, LONGEST
from fuzz.surface import MOST_BYTES, Surface
from fuzz.surfaces import archives, grpc_calls, http, labels, lengths, media
from fuzz.surfaces.images import encoded
from PIL import Image
from tests.support.tflite import with_custom_operator

_TEXT = 4 << 20
_CONTROL = "\x1b[2J\r\n"
"""Characters that control a terminal."""


def harmful(surface: Surface) -> list[bytes]:
    """Return the inputs of a surface that did harm once, the same ones each time."""
    make = _MADE.get(surface.name)
    return [] if make is None else [data[:MOST_BYTES] for data in make(surface)]


def _requests(surface: Surface) -> list[bytes]:
    """Return requests over HTTP: as many in one piece as may be sent, long lists and paths, deep lists, and many scores."""
    paths = ("", "v2", "v2/models/tiny/config", "v2/models/stats", "openapi.json")
    ones = [http.request(path) for path in paths]
    return [
        *(one * (MOST_BYTES // len(one)) for one in ones),
        http.heads(HEADS, 2048),
        *_long_lists(),
        *(http.request(path, body) for path, body in _deep()),
        *(
            2 * http.request(path)
            for path in ("%/" * 15_000, "v2/models/" + "%" * 30_000 + "/infer")
        ),
    ]


def _long_lists() -> list[bytes]:
    """Return JSON of 4 MiB of which compressing leaves some kilobytes: numbers, and what no route takes."""
    made = []
    for zero in ("0", "1e-9", "[0]"):
        for count in (LONGEST, _TEXT // (len(zero) + 1) - 100):
            body = http.zeros(count, zero)
            made += [("v2/models/long/infer", body, stated) for stated in (True, False)]
    for path, begin, end in (
        ("v2/repository/index", b'{"ready":[', b"0]}"),
        ("v2/logging", b'{"log_info":[', b"0]}"),
        ("v2/models/tiny/infer", b'{"inputs":[],"parameters":{"priority":[', b"0]}}"),
    ):
        for unit in (b"[],", b"{},", b"9e-99,"):
            body = begin + unit * ((1 << 20) // len(unit) - 20) + end
            made.append((path, body, False))
    found = []
    for path, body, stated in made:
        length = [("Inference-Header-Content-Length", str(len(body)))] if stated else []
        packed = gzip.compress(body, mtime=0)
        found.append(http.request(path, packed, [("Content-Encoding", "gzip"), *length]))
    return found


def _deep() -> list[tuple[str, bytes]]:
    """Return lists that are nested as deeply as they can be read, by the routes to which they are sent."""
    deep = b"[" * 1000 + b"]" * 1000
    return [
        ("v2/repository/index", b'{"ready":' + deep + b"}"),
        ("v2/logging", b'{"log_info":' + deep + b"}"),
        ("v2/models/tiny/infer", b'{"inputs":[],"parameters":{"priority":' + deep + b"}}"),
    ]


def _calls(surface: Surface) -> list[bytes]:
    """Return a message that gRPC's compression makes small, and calls for large answers that aren't read."""
    packed = gzip.compress(bytes(48 << 20), mtime=0)
    return [
        b"ModelInfer gzip\n" + packed,
        b"ModelInfer unread 128\n" + grpc_calls.large(),
        b"ModelStreamInfer unread 128\n" + grpc_calls.large(),
    ]


def _labels(surface: Surface) -> list[bytes]:
    """Return labels that take much once they are read, and a few kilobytes as they are sent."""
    return labels.harmful()


def _streams(surface: Surface) -> list[bytes]:
    """Return as many requests for large answers as one stream may send."""
    one = grpc_calls.large()
    return [grpc_calls.framed([one] * (MOST_BYTES // (4 + len(one))))]


@cache
def _pictures_of_few_bytes() -> list[bytes]:
    """Return pictures of one color with 4 to 67 million pixels, the last of them cut short."""
    made = []
    for mode, form, side, settings in (
        ("1", "PNG", 1 << 13, {}),
        ("L", "PNG", 1 << 13, {}),
        ("RGB", "PNG", 1 << 12, {}),
        ("1", "TIFF", 1 << 13, {"compression": "group4"}),
        ("RGB", "WEBP", 1 << 11, {"lossless": True}),
        ("RGB", "JPEG", 1 << 11, {"progressive": True, "quality": 1}),
    ):
        settings = dict[str, Any](settings)
        made.append(encoded(Image.new(mode, (side, side)), form, **settings))
    return [*made, made[0][:445]]


def _images(surface: Surface) -> list[bytes]:
    return list(_pictures_of_few_bytes())


def _pictures(surface: Surface) -> list[bytes]:
    """Return such pictures as a compressed body, for a chain too, and many times in a stream."""
    ways = (("http-gzip", "large", 1), ("http-gzip", "squares", 1), ("stream", "large", 128))
    return [media.written(*way, file) for way in ways for file in _pictures_of_few_bytes()]


def _texts(surface: Surface) -> list[bytes]:
    """Return long texts of which compressing leaves a few kilobytes, and one that isn't compressed."""
    parts = (".", "a ", "the cat sat mats ", "\u4e2d", "\u0301")
    long = [(part * (_TEXT // len(part.encode()))).encode() for part in parts]
    packed = [media.written("http-gzip", "text", 1, text) for text in long]
    return [
        *packed,
        media.written("http", "text", 1, long[0]),
        media.written("grpc", "text", 1, long[0]),
    ]


def _lengths(surface: Surface) -> list[bytes]:
    """Return requests whose open dimensions multiply to far more than in the data, or of which one is far larger."""
    sizes = (("plane", 31, [75, 216]), ("across", 32, [1, 1024]), ("alone", 1, [1024, 16]))
    return [
        lengths.written("http-raw", lengths.BY_NAME[n], [size], rows) for n, rows, size in sizes
    ]


def _programs(surface: Surface) -> list[bytes]:
    """Return a program that names its parts with characters that control a terminal."""
    return [_renamed(seed, ".json", b"weight", _CONTROL) for seed in surface.seeds()[:1]]


def _keras(surface: Surface) -> list[bytes]:
    """Return an archive that states a way of compression which there isn't."""
    (name, data), *_ = archives.members_of(surface.seeds()[0]).items()
    made = bytearray(archives.archive_of([(name, data)], zipfile.ZIP_STORED))
    made[8] = made[made.find(b"PK\x01\x02") + 10] = 99
    return [bytes(made)]


def _weights(surface: Surface) -> list[bytes]:
    """Return checkpoints that name a type with such characters, and by a name of 19 kB."""
    found = []
    for seed in surface.seeds()[:1]:
        for name in (b"\x1b[2J", b"x" * 19_000):
            members = archives.members_of(seed)
            changed = [
                (one, data.replace(b"_rebuild_tensor_v2", name) if one.endswith(".pkl") else data)
                for one, data in members.items()
            ]
            found.append(archives.archive_of(changed, zipfile.ZIP_DEFLATED))
    return found


def _skops(surface: Surface) -> list[bytes]:
    """Return models that name a class with such characters, and ones of whose arrays one has another shape."""
    seed = surface.seeds()[0]
    members = list(archives.members_of(seed).items())
    arrays = [name for name, _ in members if name.endswith(".npy")]
    nodes = next(name for name, data in members if b"left_child" in data)
    found = [_renamed(seed, ".json", b"DecisionTreeClassifier", _CONTROL)]
    for place, array in ((arrays[0], np.zeros(3)), (nodes, np.zeros(()))):
        other = io.BytesIO()
        np.save(other, array)
        changed = [(name, other.getvalue() if name == place else data) for name, data in members]
        found.append(archives.archive_of(changed, zipfile.ZIP_STORED))
    return found


def _irs(surface: Surface) -> list[bytes]:
    """Return a graph without the operation that marks its output."""
    return [surface.seeds()[0].replace(b'type="Result"', b'type="44"')]


def _tflite(surface: Surface) -> list[bytes]:
    """Return a model with a custom operator whose settings point far before them."""
    return [with_custom_operator(surface.seeds()[0], b"\x7f\xff\xff\x7f\x24\x04")]


def _trees(surface: Surface) -> list[bytes]:
    """Return trees of LightGBM and CatBoost that state more than there is, and settings without a colon."""
    seeds = surface.seeds()
    light = next(seed for seed in seeds if seed.startswith(b"tree"))
    binary = next(seed for seed in seeds if seed.startswith(b"CBM1"))
    begin, parameters, end = light.partition(b"\nparameters:")
    changes = (
        (b"num_tree_per_iteration=3", b"num_tree_per_iteration=2147483647"),
        (b"\nnum_leaves=", b"\nnum_leaves=400"),
        (b"tree_sizes=", b"tree_sizes=999999999 "),
        (b"\nsplit_feature=", b"\nsplit_feature=99 "),
        (b"\ndecision_type=", b"\ndecision_type=1_0 "),
    )
    assert all(old in light for old, _ in changes)
    return [
        *(light.replace(*change) for change in changes),
        begin + parameters + end.replace(b": ", b" "),
        binary[:4] + b"\xf0\xff\xff\x7f" + binary[8:],
    ]


def _torchscript(surface: Surface) -> list[bytes]:
    """Return modules whose pickles claim gigabytes, or whose code is nested deeply, and one without forward."""
    members = archives.members_of(surface.seeds()[0])
    (pickle,) = (name for name in members if name.endswith("/data.pkl"))
    (code,) = (name for name in members if name.endswith("/container.py"))
    claims = (b"]r\xff\xff\xff\x3f", b"X\xff\xff\xff\x7f")
    found = [{pickle: members[pickle][:2] + claim + members[pickle][2:]} for claim in claims]
    begin, first, rest = members[code].partition(b"Tensor:\n")
    assert rest
    for line in (
        b"y = " + b"(" * 20_000,
        b"y = 1" + b"+1" * 20_000,
        b"#\n" * 20_000,
        b"\n" * 60_000,
    ):
        found.append({code: begin + first + b"    " + line + b"\n" + rest})
    found.append({code: members[code].replace(b"def forward", b"def backward")})
    found.append({code: members[code].replace(b"nn.modules.linear", b"nN.modules.linear", 1)})
    return [
        archives.archive_of([*{**members, **one}.items()], zipfile.ZIP_DEFLATED) for one in found
    ]


def _configs(surface: Surface) -> list[bytes]:
    """Return folders with JSON that is nested deeply, and with names that control a terminal."""
    text, _, _, picture, *_ = map(archives.members_of, surface.seeds())
    deep = b"[" * 60_000
    found = [{**text, name: deep} for name in text if name.endswith(".json")]
    for name, members, old in (
        ("config.json", text, "BertForSequenceClassification"),
        ("preprocessor_config.json", picture, "ViTImageProcessor"),
    ):
        new = json.dumps(_CONTROL)[1:-1].encode()
        found.append({**members, name: members[name].replace(old.encode(), new)})
    return [archives.archive_of([*one.items()], zipfile.ZIP_DEFLATED) for one in found]


def _pipelines(surface: Surface) -> list[bytes]:
    """Return files whose aliases multiply, with long numbers, and with names that control a terminal."""
    found = []
    for first, more in (("[1]", "[*a{0}, *a{0}]"), ("{a: 1}", "{{<<: [*a{0}, *a{0}]}}")):
        lines = [f"- &a0 {first}", *(f"- &a{n + 1} {more.format(n)}" for n in range(60))]
        found.append("size:\n" + "\n".join(lines))
    for value in ("0x" + "f" * 60_000, "1" + ":1" * 30_000, "2001-13-45", "!!timestamp a"):
        found.append(f"size: {value}")
    name = json.dumps(_CONTROL)
    found += [f"size: 8\n{name}: 1", f"after: [{{top_k: {{labels: {name}}}}}]"]
    chains = [f"{name}: 1", "a: {model: b, 1: 2}"]
    return [*(b"p" + one.encode() for one in found), *(b"c" + one.encode() for one in chains)]


def _renamed(archive: bytes, ending: str, old: bytes, new: str) -> bytes:
    """Return an archive whose texts in JSON have other words."""
    word = json.dumps(new)[1:-1].encode()
    members = archives.members_of(archive)
    assert any(old in data for name, data in members.items() if name.endswith(ending))
    changed = [
        (name, data.replace(old, word) if name.endswith(ending) else data)
        for name, data in members.items()
    ]
    return archives.archive_of(changed, zipfile.ZIP_STORED)


_MADE: dict[str, Callable[[Surface], list[bytes]]] = {
    "http": _requests,
    "labels": _labels,
    "grpc": _calls,
    "streams": _streams,
    "images": _images,
    "pictures": _pictures,
    "texts": _texts,
    "lengths": _lengths,
    "pt2": _programs,
    "weights": _weights,
    "skops": _skops,
    "ir": _irs,
    "keras": _keras,
    "tflite": _tflite,
    "trees": _trees,
    "torchscript": _torchscript,
    "configs": _configs,
    "pipelines": _pipelines,
}
"""Name of a surface -> function that makes its inputs."""
