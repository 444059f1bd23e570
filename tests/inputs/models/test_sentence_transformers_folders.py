"""Folders of sentence-transformers in the form that the Hub has, with random weights."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser
from tests.inputs.models.test_hugging_face_folders import SMALL, TOKENIZER, config, with_tokenizer

from hasten.core.model import Model
from hasten.errors import InputError
from hasten.inputs.models import config_claims
from hasten.inputs.models.source import check_has_program, find_model, load_model, stated_pipeline
from hasten.inputs.pipeline.text import Tokenize

WIDTH = 6
ENCODER = """
    encoder (int64[batch, length] input_ids, int64[batch, length] attention_mask)
        => (float[batch, length, 6] last_hidden_state, float[batch, 6] pooler_output) {
        last_hidden_state = Gather(table, input_ids)
        first = Gather <axis = 1> (last_hidden_state, zero)
        turned = MatMul(first, weights)
        pooler_output = Tanh(turned)
    }
"""
IDS = np.array([[1, 2, 3, 4], [5, 6, 0, 0]])
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0]])


def written(value: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def modules(folder: Path, *kinds: str, base: str = "sentence_transformers.models") -> Path:
    """Write the list of modules, the encoder first, each of the others in a folder of its own."""
    listed = [{"idx": 0, "name": "0", "path": "", "type": f"{base}.Transformer"}]
    for number, kind in enumerate(kinds, 1):
        place = f"{number}_{kind}"
        listed.append({"idx": number, "name": str(number), "path": place, "type": f"{base}.{kind}"})
    written(listed, folder / "modules.json")
    return folder


def pooling(folder: Path, *modes: str) -> Path:
    known = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken")
    stated = {f"pooling_mode_{mode}": mode in modes for mode in known}
    written(
        {"word_embedding_dimension": WIDTH, **stated, "include_prompt": True},
        folder / "1_Pooling/config.json",
    )
    return folder


def dense(folder: Path, place: str, activation: str = "torch.nn.modules.activation.Tanh") -> Any:
    numpy = pytest.importorskip("safetensors.numpy", reason="needs the extra torch")
    rng = np.random.default_rng(1)
    weights = {
        "linear.weight": rng.standard_normal((3, WIDTH), np.float32),
        "linear.bias": rng.standard_normal(3, np.float32),
    }
    stated = {"in_features": WIDTH, "out_features": 3, "bias": True}
    written(stated | {"activation_function": activation}, folder / place / "config.json")
    numpy.save_file(weights, folder / place / "model.safetensors")
    return weights["linear.weight"], weights["linear.bias"]


def table() -> Any:
    return np.random.default_rng(0).standard_normal((9, WIDTH), np.float32)


def encoder(folder: Path, opset: int = 17, text: str = ENCODER) -> Path:
    config(folder)
    (folder / "onnx").mkdir(exist_ok=True)
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {text}')
    weights = {"table": table(), "zero": np.array(0), "weights": np.eye(WIDTH, dtype=np.float32)}
    proto.graph.initializer.extend(numpy_helper.from_array(w, name) for name, w in weights.items())
    onnx.save(proto, folder / "onnx" / "model.onnx")
    return folder


def answer(model: Model, ids: Any = IDS, mask: Any = MASK) -> Any:
    assert [spec.name for spec in model.outputs] == ["sentence_embedding"]
    session = onnxruntime.InferenceSession(str(model.path))
    (found,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
    return found


def by_hand(mode: str) -> Any:
    """Pool each sentence's own tokens, without any padding."""
    rows = [table()[ids[mask == 1]] for ids, mask in zip(IDS, MASK, strict=True)]
    pool: Any = {
        "cls_token": lambda row: row[0],
        "mean_tokens": lambda row: row.mean(0),
        "max_tokens": lambda row: row.max(0),
        "mean_sqrt_len_tokens": lambda row: row.sum(0) / np.sqrt(len(row)),
    }[mode]
    return np.stack([pool(row) for row in rows])


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("mode", ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens"])
def test_an_onnx_file_gives_the_sentences_vector_whatever_its_padding(
    tmp_path: Path, mode: str, opset: int
) -> None:
    folder = pooling(modules(encoder(tmp_path / "m", opset), "Pooling"), mode)
    model = load_model(find_model(folder), None, tmp_path)
    np.testing.assert_allclose(answer(model), by_hand(mode), rtol=1e-5)


def test_several_poolings_a_dense_layer_and_the_scaling_follow_one_another(tmp_path: Path) -> None:
    folder = modules(encoder(tmp_path / "m"), "Pooling", "Normalize")
    pooling(folder, "mean_tokens", "cls_token")
    both = np.concatenate([by_hand("cls_token"), by_hand("mean_tokens")], axis=1)
    model = load_model(find_model(folder), None, tmp_path)
    scaled = both / np.linalg.norm(both, axis=1, keepdims=True)
    np.testing.assert_allclose(answer(model), scaled, rtol=1e-5)
    assert model.outputs[0].shape == ("batch", 2 * WIDTH)

    pooling(modules(folder, "Pooling", "Dense"), "mean_tokens")
    weight, bias = dense(folder, "2_Dense")
    model = load_model(find_model(folder), None, tmp_path)
    wanted = np.tanh(by_hand("mean_tokens") @ weight.T + bias)
    np.testing.assert_allclose(answer(model), wanted, rtol=1e-5)
    assert model.outputs[0].shape == ("batch", 3)


def test_the_newer_forms_of_the_files_are_read(tmp_path: Path) -> None:
    base = "sentence_transformers.sentence_transformer.modules.pooling"
    folder = modules(encoder(tmp_path / "m"), "Pooling", base=base)
    written(
        {"embedding_dimension": WIDTH, "pooling_mode": "mean"}, folder / "1_Pooling/config.json"
    )
    model = load_model(find_model(folder), None, tmp_path)
    np.testing.assert_allclose(answer(model), by_hand("mean_tokens"), rtol=1e-5)


def test_what_the_vector_doesnt_need_is_left_out(tmp_path: Path) -> None:
    folder = pooling(modules(encoder(tmp_path / "m"), "Pooling"), "mean_tokens")
    graph = onnx.load(load_model(find_model(folder), None, tmp_path).path).graph
    assert not {"MatMul", "Tanh"} & {node.op_type for node in graph.node}
    assert "weights" not in {tensor.name for tensor in graph.initializer}


def test_weights_outside_of_the_file_are_found_from_the_new_one(tmp_path: Path) -> None:
    folder = pooling(modules(encoder(tmp_path / "m"), "Pooling"), "mean_tokens")
    path = folder / "onnx" / "model.onnx"
    proto = onnx.load(path)
    onnx.save_model(
        proto, path, save_as_external_data=True, location="model.onnx_data", size_threshold=0
    )
    (tmp_path / "work").mkdir()
    model = load_model(find_model(folder), None, tmp_path / "work")
    assert model.files == (tmp_path / "work" / "model.onnx_data",)
    np.testing.assert_allclose(answer(model), by_hand("mean_tokens"), rtol=1e-5)


def test_a_file_that_has_the_vector_stays_as_it_is(tmp_path: Path) -> None:
    text = ENCODER.replace("pooler_output", "sentence_embedding")
    folder = pooling(modules(encoder(tmp_path / "m", text=text), "Pooling"), "mean_tokens")
    model = load_model(find_model(folder), None, tmp_path)
    assert model.path == folder / "onnx" / "model.onnx"


def test_an_encoder_in_a_folder_of_its_own_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    encoder(folder / "0_Transformer")
    modules(pooling(folder, "mean_tokens"), "Pooling")
    listed = json.loads((folder / "modules.json").read_text())
    listed[0]["path"] = "0_Transformer"
    written(listed, folder / "modules.json")
    written({"__version__": {"sentence_transformers": "2.0.0"}}, folder / "config.json")
    model = load_model(find_model(folder), None, tmp_path)
    np.testing.assert_allclose(answer(model), by_hand("mean_tokens"), rtol=1e-5)


def test_texts_are_cut_where_sentence_transformers_cuts_them(tmp_path: Path) -> None:
    folder = pooling(modules(with_tokenizer(encoder(tmp_path / "m")), "Pooling"), "mean_tokens")
    written({"max_seq_length": 3, "do_lower_case": True}, folder / "sentence_bert_config.json")
    found = find_model(folder)
    pipeline = stated_pipeline(found)
    assert pipeline is not None
    (step,) = pipeline.steps
    assert isinstance(step, Tokenize)
    assert step("good bad good bad good")["input_ids"].tolist() == [2, 3, 2]
    assert found.hasten_notes == (
        f"{folder}/sentence_bert_config.json turns texts to lower case, which the bundle's "
        "tokenizer doesn't do: give texts in lower case",
    )
    written(TOKENIZER | {"normalizer": {"type": "Lowercase"}}, folder / "tokenizer.json")
    assert find_model(folder).hasten_notes == ()


def test_a_note_needs_no_tokenizer_that_can_be_read(tmp_path: Path) -> None:
    folder = pooling(modules(encoder(tmp_path / "m"), "Pooling"), "mean_tokens")
    written({"do_lower_case": True}, folder / "sentence_bert_config.json")
    for text in ("[" * 100_000, "{,}", "[]"):
        (folder / "tokenizer.json").write_text(text)
        assert "turns texts to lower case" in find_model(folder).sentence.note
    nested: dict[str, Any] = {"type": "Lowercase"}
    for _ in range(300):
        nested = {"type": "Sequence", "normalizers": [nested]}
    written({"normalizer": nested}, folder / "tokenizer.json")
    assert find_model(folder).sentence.note == ""


def refused(folder: Path, workdir: Path) -> str:
    with pytest.raises(InputError) as error:
        load_model(find_model(folder), None, workdir)
    return str(error.value)


def test_what_isnt_supported_is_refused_by_name(tmp_path: Path) -> None:
    folder = modules(encoder(tmp_path / "m"), "Pooling", "LayerNorm")
    pooling(folder, "mean_tokens")
    own = "build the whole model in a my.py and give my.py:model"
    known = "the supported ones are Transformer, Pooling, Dense and Normalize"
    assert refused(folder, tmp_path) == (
        f"{folder}/modules.json has the module sentence_transformers.models.LayerNorm; {known}: {own}"
    )
    pooling(modules(folder, "Pooling"), "lasttoken")
    assert refused(folder, tmp_path) == (
        f"{folder}/1_Pooling/config.json pools by lasttoken; the supported ways are cls, max, mean, "
        f"mean_sqrt_len: {own}"
    )
    modules(folder)
    assert refused(folder, tmp_path) == (
        f"{folder}/modules.json has no Pooling after the encoder, which makes one vector"
    )
    pooling(modules(folder, "Pooling", "Dense"), "mean_tokens")
    dense(folder, "2_Dense", "torch.nn.modules.activation.GELU")
    assert refused(folder, tmp_path) == (
        f"{folder}/2_Dense/config.json has the activation GELU; the supported ones are Identity, "
        "ReLU, Sigmoid, Tanh"
    )
    listed = json.loads((folder / "modules.json").read_text())
    listed[1]["path"] = "../elsewhere"
    written(listed, folder / "modules.json")
    assert refused(folder, tmp_path) == (
        f"{folder}/modules.json names the folder '../elsewhere', which isn't in {folder}"
    )
    listed[1]["path"] = "x" * 5000
    written(listed, folder / "modules.json")
    assert refused(folder, tmp_path) == (
        f"{folder}/modules.json names the folder '{'x' * 99}, which can't be read: File name too long"
    )


def test_an_encoder_without_the_version_of_its_operators_is_refused(tmp_path: Path) -> None:
    folder = pooling(modules(encoder(tmp_path / "m"), "Pooling"), "mean_tokens")
    file = folder / "onnx" / "model.onnx"
    proto = onnx.load(file)
    proto.opset_import[0].domain = "com.microsoft"
    onnx.save(proto, file)
    assert refused(folder, tmp_path) == (
        f"{file} doesn't say in which version it has ONNX's own operators, which the steps of "
        f"{folder}/modules.json need: export it again"
    )


def test_an_encoder_that_lacks_what_the_pooling_reads_is_refused(tmp_path: Path) -> None:
    text = ENCODER.replace(", int64[batch, length] attention_mask", "")
    folder = pooling(modules(encoder(tmp_path / "m", text=text), "Pooling"), "mean_tokens")
    assert refused(folder, tmp_path) == (
        f"{folder}/modules.json pools by attention_mask, which the encoder doesn't take: give it "
        "in the data"
    )
    pooling(folder, "cls_token")
    load_model(find_model(folder), None, tmp_path)
    encoder(folder, text=ENCODER.replace("last_hidden_state", "logits"))
    assert refused(folder, tmp_path) == (
        f"{folder}/modules.json pools the output last_hidden_state, but the encoder gives logits, "
        "pooler_output"
    )


@pytest.mark.seconds
def test_safetensors_are_exported_with_the_pooling_and_an_open_length(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra hugging-face")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    # Many folders name what the encoder was trained as, whose head isn't among the weights.
    whole = transformers.BertForMaskedLM(transformers.BertConfig(**SMALL)).eval()
    folder = tmp_path / "m"
    transformers.BertModel(whole.config, add_pooling_layer=False).save_pretrained(folder)
    stated = json.loads((folder / "config.json").read_text())
    written(stated | {"architectures": ["BertForMaskedLM"]}, folder / "config.json")
    pooling(modules(folder, "Pooling", "Normalize"), "mean_tokens")
    found = find_model(folder)
    with pytest.raises(InputError, match="lacks the pooling of"):
        check_has_program(found)
    model = load_model(found, None, tmp_path)
    module = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    for length in (4, 9):
        ids = np.random.default_rng(length).integers(2, 20, (2, length))
        mask = np.ones_like(ids)
        mask[1, 3:] = 0
        with torch.no_grad():
            given = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
            states = module(**given).last_hidden_state.numpy()
        rows = np.stack([states[0].mean(0), states[1, :3].mean(0)])
        session = onnxruntime.InferenceSession(str(model.path))
        kinds = {"token_type_ids": np.zeros_like(ids)}
        names = {spec.name for spec in model.inputs}
        (own,) = session.run(
            None,
            {"input_ids": ids, "attention_mask": mask}
            | {name: one for name, one in kinds.items() if name in names},
        )
        np.testing.assert_allclose(
            own, rows / np.linalg.norm(rows, axis=1, keepdims=True), atol=1e-4
        )


def test_names_are_shown_without_control_characters(tmp_path: Path) -> None:
    folder = modules(encoder(tmp_path / "m"), "Pooling")
    written({"pooling_mode": "\x1b[2J"}, folder / "1_Pooling/config.json")
    said = refused(folder, tmp_path)
    assert said.startswith(f"{folder}/1_Pooling/config.json pools by \\x1b[2J; the supported ")
    said = refused(modules(folder, "\n"), tmp_path)
    assert "has the module sentence_transformers.models.\\n; " in said


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "modules.json", "1_Pooling/config.json", "tokenizer_config.json"),
        *("sentence_bert_config.json", "model.safetensors.index.json"),
    ],
)
def test_a_file_that_is_nested_too_deeply_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    folder = with_tokenizer(config(pooling(modules(tmp_path / "m", "Pooling"), "mean_tokens")))
    written({"do_lower_case": True}, folder / "sentence_bert_config.json")
    written({"model_max_length": 8}, folder / "tokenizer_config.json")
    (folder / name).write_text("[" * 100_000)

    def read() -> None:
        found = find_model(folder)
        config_claims.check_places(folder, {})
        assert found.sentence is not None
        assert found.sentence.note is not None
        stated_pipeline(found)

    with pytest.raises(InputError) as error:
        read()
    assert str(error.value).startswith(f"{folder / name} can't be read as JSON: maximum recursion")
    assert str(error.value).isprintable()


def test_a_normalizer_that_is_nested_deeply_is_looked_through(tmp_path: Path) -> None:
    folder = with_tokenizer(config(pooling(modules(tmp_path / "m", "Pooling"), "mean_tokens")))
    written({"do_lower_case": True}, folder / "sentence_bert_config.json")
    for last, note in (('{"type": "Lowercase"}', ""), ("{}", "turns texts to lower case")):
        nested = '{"normalizers": [' * 400 + last + "]}" * 400
        (folder / "tokenizer.json").write_text(f'{{"normalizer": {nested}}}')
        assert note in find_model(folder).sentence.note
        assert bool(note) == bool(find_model(folder).sentence.note)


@pytest.mark.parametrize("where", ["/dev/zero", "a pipe"])
def test_a_link_to_a_device_or_a_pipe_is_not_read(where: str, tmp_path: Path) -> None:
    folder = config(pooling(modules(tmp_path / "m", "Pooling"), "mean_tokens"))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    stated = folder / "1_Pooling" / "config.json"
    stated.unlink()
    stated.symlink_to(pipe if where == "a pipe" else where)
    with pytest.raises(InputError) as error:
        find_model(folder)
    assert str(error.value) == (f"{stated} can't be read as text: it isn't a regular file")


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "1_Pooling/config.json", "1_Pooling", "more"]
)
def test_a_link_out_of_the_folder_is_followed_only_if_it_is_trusted(
    name: str, tmp_path: Path
) -> None:
    folder = with_tokenizer(config(pooling(modules(tmp_path / "m", "Pooling"), "mean_tokens")))
    encoder(folder)
    other = tmp_path / "other"
    (folder / "more").mkdir()
    (folder / name).rename(other)
    (folder / name).symlink_to(other)
    with pytest.raises(InputError) as error:
        find_model(folder)
    assert str(error.value) == (
        f"{folder / name} is a link to {other}; the files of a model must lie in its folder: if you trust it, copy "
        "the file there, or add trust_code=True"
    )
    assert find_model(folder, trust_code=True) is not None


def test_the_links_of_hugging_faces_cache_are_followed(tmp_path: Path) -> None:
    cache = tmp_path / "models--a--b"
    plain = with_tokenizer(config(pooling(modules(tmp_path / "m", "Pooling"), "mean_tokens")))
    encoder(plain)
    (cache / "blobs").mkdir(parents=True)
    for number, file in enumerate(sorted(one for one in plain.rglob("*") if one.is_file())):
        link = cache / "snapshots" / "0a" / file.relative_to(plain)
        link.parent.mkdir(parents=True, exist_ok=True)
        file.rename(cache / "blobs" / str(number))
        up = "../" * len(link.relative_to(cache).parent.parts)
        link.symlink_to(f"{up}blobs/{number}")
    (tmp_path / "linked").symlink_to(cache / "snapshots" / "0a")
    (cache / "snapshots" / "1b").mkdir()
    within = cache / "snapshots" / "1b" / "text"
    for folder in (cache / "snapshots" / "0a", tmp_path / "linked"):
        assert find_model(folder).sentence is not None
    for link in (cache / "snapshots" / "0a").rglob("*"):
        if link.is_symlink():
            to = within / link.relative_to(cache / "snapshots" / "0a")
            to.parent.mkdir(parents=True, exist_ok=True)
            to.symlink_to(link.resolve())
    assert find_model(within).sentence is not None  # a part of a larger model
