"""A whole run on texts, from a folder with a tokenizer to a bundle that takes texts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from tests.inputs.models.test_hugging_face_folders import TOKENIZER, config
from tests.support import ragged
from tests.support.quick import quick_runs

import hasten
from hasten.bundle import read
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.tags import entities
from hasten.inputs.pipeline.text import Tokenize

pytestmark = pytest.mark.seconds

pytest.importorskip("tokenizers", reason="needs the extra text")
CLASSES = ("calm", "glad", "odd", "sad")
TAGS = ("O", "B-CITY", "I-CITY", "B-NAME")


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with quick_runs():
        yield


def folder_of_a_classifier(place: Path) -> Path:
    """Write a classifier of texts as the Hub has it: an ONNX file, a tokenizer, and the classes' names."""
    folder = config(
        place,
        architectures=["BertForSequenceClassification"],
        id2label={str(number): name for number, name in enumerate(CLASSES)},
    )
    names = {"ids": "input_ids", "mask": "attention_mask"}
    path = ragged.encoder(folder)
    proto = onnx.load(path)
    del proto.graph.output[1]
    for value in proto.graph.input:
        value.name = names[value.name]
    for node in proto.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    onnx.save(proto, path)
    words = {"[PAD]": 0, "[UNK]": 1} | {f"w{n}": n for n in range(2, ragged.WORDS)}
    tokenizer = TOKENIZER | {
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def folder_of_a_tagger(place: Path) -> Path:
    """Write a network that tags each token, and the tags' names, beside its tokenizer."""
    folder = folder_of_a_classifier(place)
    path = folder / "encoder.onnx"
    proto = onnx.load(path)
    (last,) = [node for node in proto.graph.node if "logits" in node.output]
    last.input[0] = "states"
    shape = proto.graph.output[0].type.tensor_type.shape
    shape.dim.insert(1, onnx.TensorShapeProto.Dimension(dim_param="length"))
    onnx.save(proto, path)
    stated = json.loads((folder / "config.json").read_text())
    stated["architectures"] = ["BertForTokenClassification"]
    stated["id2label"] = dict(enumerate(TAGS))
    (folder / "config.json").write_text(json.dumps(stated))
    return folder


def texts(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(3, 20, count)
    return [" ".join(f"w{n}" for n in rng.integers(2, ragged.WORDS, size)) for size in sizes]


def test_texts_with_labels_by_name_are_data_and_the_bundle_takes_texts(tmp_path: Path) -> None:
    folder, data, out = folder_of_a_classifier(tmp_path / "m"), tmp_path / "t.jsonl", tmp_path / "b"
    rows = [{"text": text, "label": CLASSES[n % 4], "id": n} for n, text in enumerate(texts(300))]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = hasten.optimize(folder, data, out=out, passes=(), engines=["onnxruntime"])
    assert result.status == "exact"
    manifest = read(out)
    assert manifest.pipeline is not None
    assert isinstance(manifest.pipeline.steps[0], Tokenize)
    with hasten.load(out) as loaded:
        decided = loaded.decide(rows[0]["text"])
        ids = [int(word[1:]) for word in str(rows[0]["text"]).split()]
        (logits,) = loaded(
            input_ids=np.array([ids]), attention_mask=np.ones((1, len(ids)), int)
        ).values()
    assert decided[0]["label"] == CLASSES[int(logits.argmax())]

    fresh = tmp_path / "fresh.txt"
    fresh.write_text("\n".join(texts(120, seed=1)))
    assert hasten.certify(out, str(fresh)).passed


def test_a_module_that_states_its_tokenizer_gets_its_optional_mask_and_keeps_the_tokenizer(
    tmp_path: Path,
) -> None:
    torch = pytest.importorskip("torch")

    class Scores(torch.nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(20, 4)
            self.hasten_pipeline = Pipeline((Tokenize(json.dumps(TOKENIZER), 8),))

        def forward(self, input_ids: Any, attention_mask: Any = None) -> Any:
            found = self.table(input_ids)
            if attention_mask is not None:
                found = found * attention_mask[:, :, None]
            return found.sum(1)

    words = ("good", "bad", "film")
    data = [
        f"{one} {two} {three} {n}"
        for n in range(12)
        for one in words
        for two in words
        for three in words
    ]
    out = tmp_path / "b"
    hasten.optimize(Scores().eval(), data, out=out, passes=(), engines=["onnxruntime"])
    manifest = read(out)
    assert manifest.pipeline is not None
    assert [one.name for one in manifest.winner.artifact.inputs] == ["input_ids", "attention_mask"]
    with hasten.load(out) as loaded:
        assert loaded.decide("good bad")


def test_tokens_of_another_vocabulary_are_refused_with_texts_too(tmp_path: Path) -> None:
    folder = folder_of_a_classifier(tmp_path / "m")
    words = {f"w{n}": n for n in range(ragged.WORDS + 1)}
    tokenizer = TOKENIZER | {"model": {"type": "WordLevel", "vocab": words, "unk_token": "w1"}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match=r"^the tokenizer's numbers go up to 50, but the model's"):
        hasten.optimize(folder, texts(300), out=tmp_path / "b", engines=["onnxruntime"])


def test_words_with_tags_are_data_and_the_bundle_tells_entities(tmp_path: Path) -> None:
    folder, data, out = folder_of_a_tagger(tmp_path / "m"), tmp_path / "t.jsonl", tmp_path / "b"
    session = onnxruntime.InferenceSession(str(folder / "encoder.onnx"))
    rows, wanted = [], []
    for text in texts(300):
        words = text.split()
        ids = np.array([[int(word[1:]) for word in words]])
        (logits,) = session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})
        wanted.append([TAGS[k] for k in np.asarray(logits)[0].argmax(axis=1)])
        rows.append({"tokens": words, "ner_tags": wanted[-1]})
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options: Any = {"passes": (), "engines": ["onnxruntime"], "metric": "entity_f1"}
    result = hasten.optimize(folder, data, out=out, **options)
    assert result.status == "exact"
    assert read(out).metric == {"type": "entity_f1", "tags": list(TAGS), "output": None}
    assert not any("the original's own entity F1" in note for note in result.notes)  # it is 100%
    with hasten.load(out) as loaded:
        for row, tags in zip(rows[:20], wanted, strict=False):
            words = list(row["tokens"])
            found = loaded.decide(" ".join(words))
            assert [(one["entity"], one["text"]) for one in found] == [
                (kind, " ".join(words[start:end])) for kind, start, end in entities(tags)
            ]


@pytest.mark.parametrize("outside", [True, False])
def test_a_bundle_keeps_no_samples_of_a_folder_with_links_that_lead_out(
    tmp_path: Path, outside: bool
) -> None:
    model, data = folder_of_a_classifier(tmp_path / "m"), tmp_path / "texts"
    inner = data / "calm"
    inner.mkdir(parents=True)
    for number, text in enumerate(texts(300)):
        (inner / f"{number}.txt").write_text(text)
    secret = (tmp_path if outside else data) / "secret.log"
    secret.write_text("w7 w8 w9")
    (inner / "zz.txt").symlink_to(secret)
    options: Any = {"passes": (), "engines": ["onnxruntime"], "out": tmp_path / "b"}
    result = hasten.optimize(model, data, **options)
    told = (
        f"the bundle keeps no samples to warm up with, because {inner / 'zz.txt'} is a link that leads out of the "
        "data's folder: copy the files into the folder to keep some"
    )
    assert (told in result.notes) == outside
    assert (read(tmp_path / "b").requests == 0) == outside
