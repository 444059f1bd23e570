import logging
import re
import resource
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

keras = pytest.importorskip("keras", reason="needs the extra keras: pip install 'hasten[keras]'")

from hasten.core.tensors import Array  # noqa: E402
from hasten.errors import InputError  # noqa: E402
from hasten.inputs.models.keras import export, input_names, load_file  # noqa: E402
from hasten.inputs.models.source import load_model  # noqa: E402
from hasten.inputs.models.stated_inputs import stated_inputs  # noqa: E402

RNG = np.random.default_rng(0)
IMAGE = RNG.random((8, 8, 3), np.float32)
TOKENS = RNG.integers(0, 50, 12).astype(np.int32)

# tensorflow and keras warn of their own workings wherever they are touched.
pytestmark = pytest.mark.filterwarnings("ignore")


def convolutional() -> Any:
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((8, 8, 3), name="image"),
            layers.Conv2D(4, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.Flatten(),
            layers.Dense(3, activation="softmax", name="scores"),
        ]
    )


def attention() -> Any:
    layers = keras.layers
    tokens = layers.Input((12,), name="tokens", dtype="int32")
    scale = layers.Input((8,), name="scale")
    embedded = layers.Embedding(50, 8)(tokens)
    attended = layers.MultiHeadAttention(2, 4, name="attended")(embedded, embedded)
    pooled = layers.Multiply()([layers.GlobalAveragePooling1D()(attended), scale])
    return keras.Model([tokens, scale], [layers.Dense(3, name="out")(pooled), attended])


def answers(path: Path, inputs: Mapping[str, Array]) -> list[Array]:
    from onnx.reference import ReferenceEvaluator

    given: Any = dict(inputs)
    return list(ReferenceEvaluator(str(path)).run(None, given))


def test_a_sequential_model_keeps_batch_names_and_answers(tmp_path: Path) -> None:
    module = convolutional()
    model = export(module, {"anything": IMAGE}, tmp_path)
    assert [str(spec) for spec in model.inputs] == ["image: float32[batch, 8, 8, 3]"]
    assert [spec.name for spec in model.outputs] == ["scores"]
    assert model.outputs[0].shape == ("batch", 3)
    assert onnx.load(model.path).ir_version == 10
    batch = RNG.random((5, 8, 8, 3), np.float32)
    wanted = keras.ops.convert_to_numpy(module(batch, training=False))
    np.testing.assert_allclose(answers(model.path, {"image": batch})[0], wanted, atol=1e-5)


def test_a_functional_model_with_several_inputs_and_outputs(tmp_path: Path) -> None:
    module = attention()
    scale = np.ones(8, np.float32)
    model = export(module, {"scale": scale, "tokens": TOKENS}, tmp_path)
    assert [spec.name for spec in model.inputs] == ["tokens", "scale"]
    assert [spec.name for spec in model.outputs] == ["out", "attended"]
    wanted = module([TOKENS[None], scale[None]], training=False)
    given: dict[str, Array] = {"tokens": TOKENS[None], "scale": scale[None]}
    for answer, want in zip(answers(model.path, given), wanted, strict=True):
        np.testing.assert_allclose(answer, keras.ops.convert_to_numpy(want), atol=1e-5)


def masked() -> tuple[Any, Array]:
    layers = keras.layers
    tokens = layers.Input((12,), name="tokens", dtype="int32")
    states = layers.LSTM(4)(layers.Embedding(50, 8, mask_zero=True)(tokens))
    padded = np.where(np.arange(12) < 7, TOKENS, 0).astype(np.int32)
    return keras.Model(tokens, layers.Dense(1, activation="sigmoid")(states)), padded


def both_ways() -> tuple[Any, Array]:
    layers = keras.layers
    series = layers.Input((None, 5), name="series")
    states = layers.Bidirectional(layers.GRU(4))(series)
    return keras.Model(series, layers.Dense(2)(states)), RNG.standard_normal((9, 5), np.float32)


@pytest.mark.parametrize("make", [masked, both_ways])
def test_a_recurrent_model_that_onnx_itself_evaluates_wrongly_is_exported(
    tmp_path: Path, make: Callable[[], tuple[Any, Array]]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    module, sample = make()
    model = export(module, [sample], tmp_path)
    batch = np.stack([sample, sample[::-1]])
    session = onnxruntime.InferenceSession(str(model.path))
    answer = session.run(None, {model.inputs[0].name: batch})[0]
    wanted = keras.ops.convert_to_numpy(module(batch, training=False))
    np.testing.assert_allclose(answer, wanted, atol=1e-5)


def test_a_layer_that_remembers_the_last_call_is_refused_by_name(tmp_path: Path) -> None:
    series = keras.layers.Input((9, 5), batch_size=1, name="series")
    module = keras.Model(series, keras.layers.GRU(4, stateful=True, name="memory")(series))
    with pytest.raises(InputError) as refused:
        export(module, [np.zeros((9, 5), np.float32)], tmp_path)
    assert str(refused.value) == (
        "the layer 'memory' of the Keras model keeps its state between calls (stateful=True), which an ONNX file "
        "can't: build the model with stateful=False, or with the states as inputs and outputs"
    )


def test_a_keras_file_is_loaded_and_dispatched(tmp_path: Path) -> None:
    module = convolutional()
    module.save(tmp_path / "model.keras")
    seen: list[Any] = []

    def sample(names: Any) -> dict[str, Array]:
        seen.append(names)
        return {"image": IMAGE}

    (tmp_path / "work").mkdir()
    model = load_model(tmp_path / "model.keras", sample, tmp_path / "work")
    assert seen == [("image",)]
    wanted = keras.ops.convert_to_numpy(module(IMAGE[None], training=False))
    np.testing.assert_allclose(answers(model.path, {"image": IMAGE[None]})[0], wanted, atol=1e-5)


def test_a_live_keras_model_is_dispatched_on_either_backend(tmp_path: Path) -> None:
    model = load_model(convolutional(), {"image": IMAGE}, tmp_path)
    assert [spec.name for spec in model.inputs] == ["image"]


def test_logging_is_left_as_it_was(tmp_path: Path) -> None:
    before = logging.root.manager.disable
    export(convolutional(), [IMAGE], tmp_path)
    assert logging.root.manager.disable == before


def test_inputs_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        export(attention(), {"tokens": TOKENS}, tmp_path)
    assert str(error.value) == "the model takes the inputs tokens, scale; the data has tokens"


def test_a_model_that_was_never_built_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        export(keras.Sequential([keras.layers.Dense(2)]), [IMAGE], tmp_path)
    assert str(error.value) == (
        "the Keras model has no stated inputs: call it once, or give it an Input"
    )


def test_a_file_that_is_no_keras_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.keras").write_bytes(b"no model")
    with pytest.raises(InputError) as error:
        load_file(tmp_path / "bad.keras")
    assert str(error.value).startswith(
        f"{tmp_path / 'bad.keras'} can't be loaded as a Keras model: "
    )
    with pytest.raises(InputError) as error:
        load_file(tmp_path / "no.keras")
    assert str(error.value) == f"no such file: {tmp_path / 'no.keras'}"


def test_a_file_that_is_replaced_after_the_check_isnt_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hasten.inputs.models import keras_archive

    path, other = tmp_path / "model.keras", tmp_path / "other.keras"
    convolutional().save(path)
    attention().save(other)
    check = keras_archive.check

    def then_replaced(*given: Any) -> None:
        check(*given)
        path.write_bytes(other.read_bytes())

    monkeypatch.setattr(keras_archive, "check", then_replaced)
    assert load_file(path).input_shape == (None, 8, 8, 3)
    assert path.read_bytes() == other.read_bytes()


def claiming(whole: Path, claimed: Path, was: str, claims: str) -> None:
    """Write a file again with another text in its configuration."""
    with zipfile.ZipFile(whole) as read, zipfile.ZipFile(claimed, "w") as written:
        for name in read.namelist():
            data = read.read(name)
            if name == "config.json":
                assert was.encode() in data
                data = data.replace(was.encode(), claims.encode())
            written.writestr(name, data)


@pytest.mark.parametrize(
    ("make", "size"), [(convolutional, '"units": 3'), (attention, '"input_dim": 50')]
)
def test_a_layer_of_any_size_is_refused_before_its_weights_take_memory(
    tmp_path: Path, make: Callable[[], Any], size: str
) -> None:
    whole, claimed = tmp_path / "whole.keras", tmp_path / "claimed.keras"
    make().save(whole)
    claiming(whole, claimed, size, size.split()[0] + " 2000000000")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError) as error:
        load_file(claimed)
    assert re.fullmatch(
        rf"{claimed} can't be loaded as a Keras model: its layers claim [\d,]{{10,}} bytes of weights, but it "
        r"has [\d,]+: if you trust it, add trust_code=True",
        str(error.value),
    )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.parametrize("make", [convolutional, attention])
def test_a_file_with_its_own_weights_is_loaded(tmp_path: Path, make: Callable[[], Any]) -> None:
    model = make()
    model.save(tmp_path / "model.keras")
    again = load_file(tmp_path / "model.keras")
    for one, other in zip(model.weights, again.weights, strict=True):
        assert np.array_equal(one, other)


def recurrent() -> Any:
    layers = keras.layers
    return keras.Sequential([layers.Input((5, 8), batch_size=2), layers.GRU(4, stateful=True)])


def recurrent_over_many_steps() -> Any:
    layers = keras.layers
    lstm = layers.LSTM(64, return_sequences=True, stateful=True)
    return keras.Sequential([layers.Input((40_000, 2), batch_size=16), lstm])


def adapted() -> Any:
    layers = keras.layers
    model = keras.Sequential([layers.Input((1024,)), layers.Dense(1024)])
    model.layers[0].enable_lora(256)
    return model


def normalized() -> Any:
    layers = keras.layers
    return keras.Sequential([layers.Input((50,)), layers.Normalization(mean=0.0, variance=1.0)])


def normalized_by(axis: Any, **numbers: Any) -> Callable[[], Any]:
    def make() -> Any:
        layers = keras.layers
        return keras.Sequential([layers.Input((6, 5)), layers.Normalization(axis, **numbers)])

    return make


@pytest.mark.parametrize(
    "make",
    [
        *(recurrent, adapted, normalized),
        *(normalized_by(axis) for axis in (None, -1, (1, 2))),
        normalized_by(-1, mean=[1.0, 2, 3, 4, 5], variance=[1.0] * 5),
    ],
)
def test_a_file_whose_arrays_arent_all_weights_is_loaded(
    tmp_path: Path, make: Callable[[], Any]
) -> None:
    model = make()
    model.save(tmp_path / "model.keras")
    again = load_file(tmp_path / "model.keras")
    x = RNG.random([size or 1 for size in model.input_shape]).astype(np.float32)
    assert np.allclose(again(x), model(x), atol=1e-5)


def test_states_count_once_for_all_steps(tmp_path: Path) -> None:
    recurrent_over_many_steps().save(tmp_path / "model.keras")
    assert load_file(tmp_path / "model.keras").output_shape == (16, 40_000, 64)


@pytest.mark.parametrize(
    ("make", "was", "claims", "said"),
    [
        (recurrent, "[2, 5, 8]", "[80000000, 5, 8]", "its layers keep states of"),
        (normalized, "[null, 50]", "[null, 900000000]", "its layers claim"),
        (adapted, '"lora_rank": 256', '"lora_rank": 90000000', "its layers claim"),
    ],
)
def test_arrays_that_arent_weights_are_bounded_too(
    tmp_path: Path, make: Callable[[], Any], was: str, claims: str, said: str
) -> None:
    whole, claimed = tmp_path / "whole.keras", tmp_path / "claimed.keras"
    make().save(whole)
    claiming(whole, claimed, was, claims)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=said):
        load_file(claimed)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_layer_of_the_callers_own_may_store_nothing(tmp_path: Path) -> None:
    @keras.saving.register_keras_serializable("of_a_test")
    class Table(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def build(self, shape: Any) -> None:
            self.table = self.add_weight(shape=(1000, 1000), initializer="ones", trainable=False)

        def call(self, x: Any) -> Any:
            return x + self.table[0, 0]

        def save_own_variables(self, store: Any) -> None:
            """Store nothing: the table is computed."""

        def load_own_variables(self, store: Any) -> None:
            """Read nothing."""

    keras.Sequential([keras.layers.Input((4,)), Table()]).save(tmp_path / "own.keras")
    answer = load_file(tmp_path / "own.keras")(np.ones((1, 4), np.float32))
    assert keras.ops.convert_to_numpy(answer).tolist() == [[2.0, 2.0, 2.0, 2.0]]


def test_a_layer_of_the_callers_own_may_make_a_variable_from_an_array(tmp_path: Path) -> None:
    @keras.saving.register_keras_serializable("of_a_test")
    class Shifted(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def build(self, shape: Any) -> None:
            self.shift = keras.Variable(np.ones(4, np.float32))

        def call(self, x: Any) -> Any:
            return x + self.shift

    keras.Sequential([keras.layers.Input((4,)), Shifted()]).save(tmp_path / "own.keras")
    answer = load_file(tmp_path / "own.keras")(np.ones((1, 4), np.float32))
    assert keras.ops.convert_to_numpy(answer).tolist() == [[2.0, 2.0, 2.0, 2.0]]


def test_a_lambda_layer_is_loaded_only_where_it_is_trusted(tmp_path: Path) -> None:
    layers = keras.layers
    keras.Sequential([layers.Input((4,)), layers.Lambda(lambda x: x * 2)]).save(
        tmp_path / "twice.keras"
    )
    with pytest.raises(InputError, match=r"contains an object of the class 'Lambda' from"):
        load_file(tmp_path / "twice.keras")
    module = load_file(tmp_path / "twice.keras", trust_code=True)
    answer = keras.ops.convert_to_numpy(module(np.ones((1, 4), np.float32)))
    assert answer.tolist() == [[2.0, 2.0, 2.0, 2.0]]


def test_what_the_caller_registered_is_the_callers_own_code(tmp_path: Path) -> None:
    @keras.saving.register_keras_serializable("of_a_test")  # type: ignore[untyped-decorator]
    def twice(x: Any) -> Any:
        return x * 2

    @keras.saving.register_keras_serializable("of_a_test")
    class Twice(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def call(self, x: Any) -> Any:
            return x * 2

    layers = keras.layers
    module = keras.Sequential([layers.Input((4,)), layers.Activation(twice), Twice()])
    module.compile("adam", loss=twice)
    module.save(tmp_path / "own.keras")
    loaded = load_file(tmp_path / "own.keras")
    answer = keras.ops.convert_to_numpy(loaded(np.ones((1, 4), np.float32)))
    assert answer.tolist() == [[4.0, 4.0, 4.0, 4.0]]


def test_plain_models_pass_the_check_of_the_archive(tmp_path: Path) -> None:
    layers = keras.layers
    image = layers.Input((8, 8, 3))
    x = layers.RandomFlip()(layers.Rescaling(1 / 255)(image))
    x = layers.SeparableConv2D(4, 3, depthwise_regularizer="l2", activation="gelu")(x)
    x = keras.ops.relu(x) + 2 * x
    x = layers.Reshape((36, 4))(x)
    x = layers.Bidirectional(layers.RNN([layers.GRUCell(3), layers.LSTMCell(3)]))(x)
    inner = keras.Sequential([layers.Input((6,)), layers.Dense(2, kernel_constraint="non_neg")])
    inner.compile("adam", "mse")
    x = layers.PReLU(alpha_initializer=keras.initializers.Constant(0.1))(inner(x))
    keras.Model(image, keras.ops.softmax(x)).save(tmp_path / "plain.keras")
    assert load_file(tmp_path / "plain.keras").input_shape == (None, 8, 8, 3)


def test_input_names_are_the_models_own() -> None:
    assert input_names(attention()) == ("tokens", "scale")


def test_a_model_states_its_inputs_with_an_open_batch() -> None:
    (spec,) = stated_inputs(convolutional())
    assert (spec.name, spec.dtype, spec.shape) == ("image", "float32", ("batch", 8, 8, 3))
