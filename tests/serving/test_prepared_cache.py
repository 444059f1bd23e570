"""Samples are prepared once for all models with the same steps, where a server caches."""

from __future__ import annotations

import ctypes
import gc
import http.client
import io
import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import onnx
import pytest
import tritonclient.http as triton
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper, parser
from PIL import Image
from tests.inputs.pipeline.test_text import CONTENT, WORDS
from tests.support import chains
from tests.support.chains import COLOURS, UNIT, png, squares
from tests.support.pausing import Pausing, PausingSession, pausing_installed
from tests.support.servers import ServerThread, bundle_of
from tritonclient.utils import InferenceServerException

import hasten
from hasten.core.objects import import_path
from hasten.core.registry import Registry
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors
from hasten.engines.base import Artifact, Engine, Session
from hasten.inputs.pipeline.base import Origin, Pipeline, PostStep, Step
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.entities import Entities
from hasten.inputs.pipeline.image import Decode, Normalize, Resize, ToLayout
from hasten.inputs.pipeline.rows import Row
from hasten.inputs.pipeline.text import Tokenize
from hasten.serving.models.caching import AnswerCache, Cache, steps_key
from hasten.serving.options import ModelOptions
from hasten.serving.run import settings_of
from hasten.testing.models import HEADER

PATIENCE_S = 120.0
SIDE = 16
ROW_BYTES = 3 * SIDE * SIDE * 4
"""Size of a prepared picture."""
ENTRY_BYTES = 512
"""What an entry counts beside its arrays."""
STEPS = chains.pipeline_of(SIDE, ()).steps
CLASSIFIER = """
    colour (float[batch, 3, 16, 16] x) => (float[batch, 3] logits) {
        pooled = GlobalAveragePool(x)
        flat = Flatten <axis = 1> (pooled)
        logits = MatMul(flat, weight)
    }"""
SEEN = np.eye(3, dtype=np.float32)
TURNED = SEEN[[1, 2, 0]]
"""Weights of a model that calls red green, green blue, and blue red."""


def bundle(
    folder: Path,
    name: str,
    weight: Any = SEEN,
    steps: tuple[Step, ...] = STEPS,
    after: tuple[PostStep, ...] = (TopK(1, COLOURS),),
    sizes: str = "16, 16",
    **options: Any,
) -> Path:
    """Write a bundle that tells the color of a picture."""
    model = parser.parse_model(HEADER + CLASSIFIER.replace("16, 16", sizes))
    model.graph.initializer.append(numpy_helper.from_array(weight, "weight"))
    onnx.save(model, folder / f"{name}.onnx")
    return bundle_of(
        folder, folder / f"{name}.onnx", name, pipeline=Pipeline(steps, after), **options
    )


def picture(red: int, green: int = 0, blue: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (red, green, blue)).save(file, "PNG")
    return file.getvalue()


def post(server: ServerThread, model: str, body: bytes, kind: str = "image/png") -> tuple[int, Any]:
    connection = http.client.HTTPConnection(server.host, timeout=PATIENCE_S)
    connection.request("POST", f"/v2/models/{model}/infer", body, {"Content-Type": kind})
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, answer


def told(server: ServerThread, model: str, body: bytes) -> str:
    """Return the label of the class that a model names."""
    status, answer = post(server, model, body)
    assert status == 200, answer
    (best,) = answer["decision"]
    return str(best["label"])


def looked_up(server: ServerThread, model: str) -> tuple[int, int]:
    """Return how many prepared samples of a model the cache had, and how many it hadn't."""
    counted = server.server.state.repository.find(model).statistics
    return server.call(lambda: (counted.prepared_hits, counted.prepared_misses))


def cache_of(server: ServerThread) -> Cache:
    cache = server.server.state.repository.cache
    assert cache is not None
    return cache


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Decode]:
    """Each decoding of a picture in this process."""
    found: list[Decode] = []
    opened = Decode.opened

    def counted(self: Decode, value: Any, scale: Any) -> Any:
        found.append(self)
        return opened(self, value, scale)

    monkeypatch.setattr(Decode, "opened", counted)
    return found


def test_a_picture_is_prepared_once_for_models_with_the_same_steps(
    tmp_path: Path, decoded: list[Decode]
) -> None:
    other_steps = (Decode(), Resize((SIDE, SIDE), "nearest"), UNIT, ToLayout())
    bundles = [
        bundle(tmp_path, "plain"),
        bundle(tmp_path, "turned", TURNED, after=(TopK(1, COLOURS, softmax=False),)),
        bundle(tmp_path, "nearest", steps=other_steps),
    ]
    places = settings_of(bundles, models=ModelOptions(cache_bytes=1 << 20)).models
    with ServerThread(*places) as server:
        assert told(server, "plain", picture(200)) == "red"
        assert told(server, "turned", picture(200)) == "green"
        assert len(decoded) == 1
        assert told(server, "nearest", picture(200)) == "red"  # other steps give other inputs
        assert told(server, "plain", picture(0, 200)) == "green"
        assert len(decoded) == 3
        assert looked_up(server, "plain") == (0, 2)
        assert looked_up(server, "turned") == (1, 0)
        assert looked_up(server, "nearest") == (0, 1)


def test_the_same_answers_come_from_kept_samples(tmp_path: Path) -> None:
    several = (TopK(3, COLOURS),)
    bundles = [bundle(tmp_path, name, after=several) for name in ("one", "other")]
    body = picture(200, 90, 30)
    with hasten.load(bundles[0]) as loaded:
        expected = loaded.decide(body)
    places = settings_of(bundles, models=ModelOptions(cache_bytes=1 << 20)).models
    with ServerThread(*places) as server:
        for name in ("one", "other"):
            assert post(server, name, body)[1]["decision"] == expected
        assert looked_up(server, "other") == (1, 0)


def test_several_samples_of_a_request_are_looked_up_one_by_one(tmp_path: Path) -> None:
    bundles = [bundle(tmp_path, name) for name in ("one", "other")]
    places = settings_of(bundles, models=ModelOptions(cache_bytes=1 << 20)).models
    with ServerThread(*places) as server:
        told(server, "one", picture(0, 0, 200))
        client = triton.InferenceServerClient(server.host, network_timeout=PATIENCE_S)
        tensor = triton.InferInput("raw", [3], "BYTES")
        samples = [picture(200), picture(0, 0, 200), picture(0, 200)]
        tensor.set_data_from_numpy(np.array(samples, object))
        decisions = client.infer("other", [tensor]).as_numpy("decision")
        client.close()
        labels = [json.loads(one)[0]["label"] for one in decisions]
        assert labels == ["red", "blue", "green"]
        assert looked_up(server, "other") == (1, 2)


def test_nothing_is_kept_without_the_option(tmp_path: Path, decoded: list[Decode]) -> None:
    bundles = [bundle(tmp_path, name) for name in ("one", "other")]
    with ServerThread(*settings_of(bundles).models) as server:
        for name in ("one", "other"):
            told(server, name, picture(200))
        assert len(decoded) == 2
        assert server.server.state.repository.cache is None
        assert looked_up(server, "other") == (0, 0)


def test_answers_and_prepared_samples_share_one_budget(tmp_path: Path) -> None:
    """Two prepared pictures fit into the half that is theirs; decisions stay longer."""
    bundles = [bundle(tmp_path, name) for name in ("one", "other")]
    budget = 4 * (ENTRY_BYTES + ROW_BYTES) + 100
    places = settings_of(bundles, models=ModelOptions(cache_bytes=budget)).models
    with ServerThread(*places) as server:
        cache = cache_of(server)
        for shade in (50, 100, 150, 200):
            told(server, "one", picture(shade))
            assert cache.size_bytes <= budget
        assert len(cache.prepared) == 2
        assert cache.prepared.size_bytes == 2 * (ENTRY_BYTES + ROW_BYTES)
        told(server, "one", picture(50))
        assert server.server.state.repository.find("one").statistics.cache_hit.count >= 1
        told(server, "other", picture(150))
        told(server, "other", picture(50))  # gone: prepared again
        assert looked_up(server, "other") == (1, 1)
        told(server, "other", picture(200))  # 150 was used later than 200, which is gone, too
        assert looked_up(server, "other") == (1, 2)


def test_a_damaged_picture_is_not_kept(tmp_path: Path) -> None:
    places = settings_of([bundle(tmp_path, "one")], models=ModelOptions(cache_bytes=1 << 20)).models
    with ServerThread(*places) as server:
        for _ in range(2):
            status, answer = post(server, "one", picture(200)[:60])
            assert status == 400
            assert "can't be read as an image" in answer["error"]
        assert len(cache_of(server).prepared) == 0
        assert cache_of(server).size_bytes == 0
        assert looked_up(server, "one") == (0, 2)


def test_a_kept_sample_makes_no_late_request_early(tmp_path: Path) -> None:
    bundles = [bundle(tmp_path, name) for name in ("one", "other")]
    places = settings_of(bundles, models=ModelOptions(cache_bytes=1 << 20)).models
    with ServerThread(*places) as server:
        told(server, "one", picture(200))
        client = triton.InferenceServerClient(server.host, network_timeout=PATIENCE_S)
        tensor = triton.InferInput("raw", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([picture(200)], object))
        with pytest.raises(InferenceServerException, match="the deadline passed before"):
            client.infer("other", [tensor], timeout=1)
        client.close()
        assert looked_up(server, "other") == (0, 0)


def test_a_new_version_of_a_model_finds_what_was_prepared_for_the_old_one(
    tmp_path: Path, decoded: list[Decode]
) -> None:
    places = settings_of([bundle(tmp_path, "one")], models=ModelOptions(cache_bytes=1 << 20)).models
    with ServerThread(*places, control=True) as server:
        assert told(server, "one", picture(200)) == "red"
        bundle(tmp_path, "one", TURNED)
        client = triton.InferenceServerClient(server.host, network_timeout=PATIENCE_S)
        client.load_model("one")
        client.close()
        answers = server.server.state.repository.find("one").cache
        assert answers is not None
        assert cache_of(server).size_bytes == ENTRY_BYTES + ROW_BYTES  # the old answers are gone
        before = len(decoded)
        assert told(server, "one", picture(200)) == "green"
        assert len(decoded) == before
        assert looked_up(server, "one") == (1, 1)
        assert len(answers) >= 1  # the new ones


@dataclass(frozen=True)
class Scribbling(Pausing):
    """An engine that overwrites its inputs once it has answered, as native code can despite numpy's flags."""

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        with self.inner.open(artifact, target) as session:
            yield ScribblingSession(session)


class ScribblingSession(PausingSession):
    """ONNX Runtime's session, with no pause."""

    def run(self, inputs: Tensors) -> dict[str, Array]:
        answers = {name: np.array(array) for name, array in self._inner.run(inputs).items()}
        for array in inputs.values():
            ctypes.memset(array.ctypes.data, 0, array.nbytes)
        return answers


def test_a_model_that_writes_into_its_input_damages_no_kept_sample(tmp_path: Path) -> None:
    names = {**Engine.registry, "scribbling": import_path(Scribbling)}
    with (
        pausing_installed(tmp_path / "plug-in"),
        patch.object(Engine, "registry", Registry("engine", "hasten.engines", names)),
    ):
        bundles = [
            bundle(tmp_path, "first"),
            bundle(tmp_path, "scribbling", engine=Scribbling()),
            bundle(tmp_path, "last"),
        ]
        places = settings_of(bundles, models=ModelOptions(cache_bytes=1 << 20)).models
        with ServerThread(*places) as server:
            for name in ("first", "scribbling", "last"):
                assert told(server, name, picture(0, 0, 200)) == "blue"
            assert looked_up(server, "last") == (1, 0)


def test_what_the_cache_hands_out_cannot_be_written_to() -> None:
    cache = Cache(1 << 20)
    whole = np.ones((4, 8, 8), np.float32)
    sample = AnswerCache(cache).prepared(b"a picture")
    for number, prepared in enumerate((whole[1:], {"x": whole[1:]})):
        sample.put(bytes([number]), prepared, Origin(8, 8))
        found = sample.get(bytes([number]))
        assert found is not None
        array = found[0]["x"] if isinstance(found[0], dict) else found[0]
        assert (array.base, found[1]) == (None, Origin(8, 8))  # no view of the whole
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    assert cache.size_bytes == 2 * (ENTRY_BYTES + whole[1:].nbytes)


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Path, Path]:
    return chains.detector(tmp_path), chains.classifier(tmp_path)


def test_a_chain_finds_what_was_prepared_for_its_model(
    parts: tuple[Path, Path], decoded: list[Decode]
) -> None:
    detector, classifier = parts
    body = png(squares({(2, 5): "green"}))
    with hasten.chain(f"{detector}+crop+{classifier}") as chain:
        expected = chain.decide(body)
    places = settings_of(
        [f"plates={detector}+crop+{classifier}"], models=ModelOptions(cache_bytes=1 << 20)
    ).models
    with ServerThread(*places) as server:
        post(server, "plates.det", body)
        decoded.clear()
        status, answer = post(server, "plates", body)
        assert (status, looked_up(server, "plates")) == (200, (1, 0))
        assert len(decoded) == 1  # crops are cut out of the picture
        (found,), (other,) = answer["decision"], expected
        assert found["box"] == other["box"]
        assert found["colour"][0]["label"] == "green"


def test_a_chain_without_crops_decodes_nothing_that_was_prepared_for_its_models(
    parts: tuple[Path, Path], tmp_path: Path, decoded: list[Decode]
) -> None:
    (tmp_path / "both.yaml").write_text(
        "det: {model: det.hasten}\ncolour: {model: colour.hasten}\n"
    )
    body = png(squares({(2, 5): "green"}))
    places = settings_of(
        [str(tmp_path / "both.yaml")], models=ModelOptions(cache_bytes=1 << 20)
    ).models
    with ServerThread(*places) as server:
        alone = post(server, "both.det", body)[1]["decision"]
        decoded.clear()
        status, answer = post(server, "both.colour", body)
        assert status == 200, answer
        assert len(decoded) == 1  # its pictures have another size
        decoded.clear()
        _, answer = post(server, "both", body)
        assert answer["decision"]["det"] == alone
        assert (len(decoded), looked_up(server, "both")) == (0, (2, 0))


@pytest.mark.parametrize("size", [0, 1 << 20])
def test_an_error_about_a_kept_sample_names_the_chains_model_as_without_a_cache(
    tmp_path: Path, size: int
) -> None:
    steps = (Decode(), UNIT, ToLayout())  # which leave a picture its size
    bundle(tmp_path, "wide", steps=steps, sizes="30, 40")
    bundle(tmp_path, "fixed", steps=steps)
    (tmp_path / "both.yaml").write_text("a: {model: wide.hasten}\nb: {model: fixed.hasten}\n")
    both = str(tmp_path / "both.yaml")
    with ServerThread(*settings_of([both], models=ModelOptions(cache_bytes=size)).models) as server:
        assert told(server, "both.a", picture(200)) == "red"
        status, answer = post(server, "both", picture(200))
        assert status == 500
        assert answer["error"].startswith("b: the pipeline gives [1, 3, 30, 40] of float32 with")


def test_a_model_finds_what_was_prepared_for_its_chain(
    parts: tuple[Path, Path], decoded: list[Decode]
) -> None:
    detector, classifier = parts
    body = png(squares({(2, 5): "green"}))
    places = settings_of(
        [f"plates={detector}+crop+{classifier}"], models=ModelOptions(cache_bytes=1 << 20)
    ).models
    with ServerThread(*places) as server:
        post(server, "plates", body)
        assert looked_up(server, "plates") == (0, 1)
        decoded.clear()
        post(server, "plates.det", body)
        assert (len(decoded), looked_up(server, "plates.det")) == (0, (1, 0))
        assert len(cache_of(server).prepared) == 1  # crops aren't kept


class Noisy(Normalize):
    """A step that may give other numbers for an equal picture."""

    deterministic: ClassVar[bool] = False


TURNS = itertools.count()


@dataclass(frozen=True)
class Turning(Step):
    """A step that changes the colors of an equal picture each time: none, red to green, red to blue."""

    deterministic: ClassVar[bool] = False

    def __call__(self, value: Array) -> Array:
        return np.ascontiguousarray(np.roll(value, next(TURNS) % 3, axis=-1))


@pytest.mark.parametrize("chained", [False, True])
def test_no_decision_is_cached_on_what_a_step_makes_anew_each_time(
    tmp_path: Path, chained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {**Step.registry, "turning": import_path(Turning)}
    monkeypatch.setattr(Step, "registry", Registry("step", "hasten.steps", names))
    which: Path | str = bundle(tmp_path, "one", steps=(*STEPS[:-1], Turning(), ToLayout()))
    body = picture(200)
    if chained:  # its detector's steps always do the same, and only crops are turned
        which, body = f"one={chains.detector(tmp_path)}+crop+{which}", png(squares({(2, 5): "red"}))
    places = settings_of([which], models=ModelOptions(cache_bytes=1 << 20)).models
    with ServerThread(*places) as server:
        found = set()
        for _ in range(3):
            decision = post(server, "one", body)[1]["decision"]
            classes = decision[0]["one"] if chained else decision
            found.add(classes[0]["label"])
        assert found == set(COLOURS)


IDS = """
    ids (int64[batch, 8] input_ids) => (float[batch, 8, 9] scores)
    <int64 depth = {9}, float[2] values = {0, 1}> { scores = OneHot(input_ids, depth, values) }"""
COUNTS = """
    counts (int64[batch, 8] input_ids) => (float[batch, 9] scores)
    <int64 depth = {9}, float[2] values = {0, 1}, int64[1] axis = {1}> {
        each = OneHot(input_ids, depth, values)
        scores = ReduceSum<keepdims = 0>(each, axis)
    }"""
PETS = Entities(tuple("B-PET" if word == "cat" else "O" for word in WORDS))


def reachable(value: Any) -> list[Any]:
    """Return a value and all that it refers to, without classes and what they refer to."""
    found: dict[int, Any] = {}
    new = [value]
    while new:
        new = [one for one in new if id(one) not in found and not isinstance(one, type)]
        found |= {id(one): one for one in new}
        new = gc.get_referents(*new)
    return list(found.values())


@pytest.mark.parametrize("after", [(), (PETS,)])
def test_what_is_cut_off_a_text_takes_no_memory_that_is_not_counted(
    after: tuple[PostStep, ...],
) -> None:
    cache, pipeline = Cache(1 << 20), Pipeline((Tokenize(CONTENT, 8),), after)
    text = "the cat sat " * 10_000
    prepared, origin = pipeline.prepared(text)
    cache.prepared.put(b"key", prepared, origin)
    kept = reachable((cache.prepared.get(b"key"), origin))
    # The tokenizer's own objects hide their memory from Python.
    assert {type(one).__module__.split(".")[0] for one in kept} <= {"builtins", "numpy", "hasten"}
    texts, numbers = [text] if after else [], 3 * 8 * 8 + (8 * 4 + 8 * 2 * 4 if after else 0)
    assert [one for one in kept if isinstance(one, str) and len(one) > 1000] == texts
    assert cache.size_bytes == ENTRY_BYTES + numbers + sum(map(sys.getsizeof, texts))


@pytest.mark.parametrize("order", [("classes", "pets"), ("pets", "classes")])
def test_a_model_that_reads_the_text_finds_it_though_another_has_the_same_steps(
    tmp_path: Path, order: tuple[str, str]
) -> None:
    bundles = []
    afters = {"classes": (COUNTS, TopK(1, softmax=False)), "pets": (IDS, PETS), "same": (IDS, PETS)}
    for name, (graph, after) in afters.items():
        onnx.save(parser.parse_model(HEADER + graph), tmp_path / f"{name}.onnx")
        pipeline = Pipeline((Tokenize(CONTENT, 8),), (after,))
        bundles.append(bundle_of(tmp_path, tmp_path / f"{name}.onnx", name, pipeline=pipeline))
    places = settings_of(bundles, models=ModelOptions(cache_bytes=1 << 20)).models
    with ServerThread(*places) as server:
        body = b"the cat sat on the cat mat"
        answers = {name: post(server, name, body, "text/plain")[1] for name in (*order, "same")}
        pets = answers["pets"]["decision"]
        assert [one["start"] for one in pets] == [4, 19]
        assert answers["classes"]["decision"][0]["class"] == WORDS.index("the")
        assert answers["same"]["decision"] == pets
        assert looked_up(server, "same") == (1, 0)


def test_steps_are_told_apart_by_their_settings() -> None:
    def key(*steps: Step) -> bytes | None:
        return steps_key(steps)

    same = key(Decode(), UNIT), key(Decode(), Normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    assert same[0] == same[1] is not None
    others = {key(Decode()), key(UNIT, Decode()), key(Decode(max_pixels=7), UNIT), same[0]}
    assert len(others) == 4
    assert key(Decode(), Noisy((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))) is None
    assert key(Row(("a", "b"))) is None  # which is read quickly
    assert key() is None


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(1, 40)), max_size=40))
def test_the_least_recently_used_go_first_and_sizes_hold(
    asked: list[tuple[int, bool, int]],
) -> None:
    """Compared with lists of what each kind should have, in the order of their last use."""
    budget = 4 * ENTRY_BYTES
    cache = Cache(budget)
    answers = AnswerCache(cache)
    used: list[tuple[bytes, bool, int]] = []  # the least recently used first
    for number, is_answer, size in asked:
        key = bytes([number])
        part = answers if is_answer else cache.prepared
        known = next((one for one in used if one[:2] == (key, is_answer)), None)
        assert (part.get(key) is not None) == (known is not None)
        if known is not None:
            used.append(used.pop(used.index(known)))
            continue
        array = np.zeros(size, np.uint8)
        if is_answer:
            answers.put(key, {"y": array})
        else:
            cache.prepared.put(key, array, Origin())
        used.append((key, is_answer, ENTRY_BYTES + size))
        for limit, some in ((budget // 2, [False]), (budget, [False, True])):
            mine = [one for one in used if one[1] in some]
            while sum(one[2] for one in mine) > limit:
                used.remove(mine.pop(0))
        assert cache.size_bytes == sum(one[2] for one in used) <= budget
        assert cache.prepared.size_bytes == sum(one[2] for one in used if not one[1])
        assert len(answers) == sum(one[1] for one in used)


def test_metrics_state_hits_misses_and_sizes(tmp_path: Path) -> None:
    bundles = [bundle(tmp_path, name) for name in ("one", "other")]
    places = settings_of(bundles, models=ModelOptions(cache_bytes=1 << 20)).models
    with ServerThread(*places) as server:
        for name in ("one", "other"):
            told(server, name, picture(200))
        connection = http.client.HTTPConnection(server.host, timeout=PATIENCE_S)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
        assert lines['hasten_prepared_hits_total{model="other",version="1"}'] == "1.0"
        assert lines['hasten_prepared_misses_total{model="one",version="1"}'] == "1.0"
        assert lines["hasten_cache_prepared_entries"] == "1.0"
        assert float(lines["hasten_cache_prepared_bytes"]) == ENTRY_BYTES + ROW_BYTES
        assert float(lines["hasten_cache_total_bytes"]) == cache_of(server).size_bytes
