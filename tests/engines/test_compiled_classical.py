"""Scalers, encoders and linear models as C answer as ONNX Runtime does, also as scikit-learn's exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from hasten.core.target import Target
from hasten.core.tensors import TensorSpec
from hasten.engines.compiled.engine import CompiledC
from hasten.engines.compiled.lowering import LOWERINGS, lower
from hasten.engines.compiled.nodes import classical
from hasten.errors import CandidateError
from hasten.inputs.models.onnx import load
from hasten.inputs.models.source import load_model

Array = npt.NDArray[Any]
ML = "ai.onnx.ml"
RNG = np.random.default_rng(7)
NAN = float("nan")
ROWS = {
    "f": np.array(
        [[1.5, -2, 0, 4], [0, 0, 0, 0], [-1, -2, -3, -0.5], [NAN, 1, 2, 3], [3, 7, 2, 1]], "f4"
    ),
    "w": np.array([[1, 2], [3, -1], [0, 0], [5, 2], [7, 3]], "i8"),
    "d": np.array([[0.1, 2], [3, -1], [0, 0], [-5, -2], [7.9, 3]], "f8"),
    "p": np.array([[1, 2, 3], [3, 1, 0], [2, 0, 1], [5, 2, 1], [7, 3, 0.5]], "f4"),
}
WEIGHTS = RNG.standard_normal(12).round(3).tolist()
SHORT = RNG.standard_normal((2, 3)).round(3)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    """Write a node; names are apart by spaces."""
    domain = "" if op in ("ArgMax", "Reshape") else ML
    return helper.make_node(op, inputs.split(), outputs.split(), domain=domain, **attributes)


def classifier(inputs: str, output: str, labels: list[Any], transform: str, outer: int) -> Any:
    """Write a linear classifier over three columns."""
    kind = "classlabels_strings" if isinstance(labels[0], str) else "classlabels_ints"
    return node(
        "LinearClassifier",
        inputs,
        f"label_{output} {output}",
        coefficients=WEIGHTS[: 3 * outer],
        intercepts=[0.1, -0.2, 0.3][:outer],
        post_transform=transform,
        **{kind: labels},
    )


def model_of(nodes: list[Any], constants: dict[str, Array], rows: dict[str, Array]) -> Any:
    """Write a model whose outputs are all that its nodes give."""
    inputs = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(array.dtype), ["n", *array.shape[1:]]
        )
        for name, array in rows.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for one in nodes for name in one.output]
    kept = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "drawn", inputs, outputs, kept)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(ML, 4)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def declared(model: Any, rows: dict[str, Array]) -> list[Array]:
    """Return ONNX Runtime's answers, and write their types and shapes into the model."""
    wanted = onnxruntime.InferenceSession(model.SerializeToString()).run(None, rows)
    for output, array in zip(model.graph.output, wanted, strict=True):
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        shape = ["n", *array.shape[1:]]
        output.CopyFrom(helper.make_tensor_value_info(output.name, kind, shape))
    return [np.asarray(array) for array in wanted]


def check(model: Any, rows: dict[str, Array], folder: Path, tolerance: float = 1e-5) -> None:
    """Check that all rows, and each alone, are answered as by ONNX Runtime."""
    wanted = declared(model, rows)
    path = folder / "model.onnx"
    onnx.save(model, path)
    target, engine = Target.host().with_threads(1), CompiledC()
    with engine.open(engine.build(load(path), target, folder), target) as session:
        assert session.batch_sizes is None, "rows aren't apart"
        found = session.run(rows)
        lone = session.run({name: array[3:4].copy() for name, array in rows.items()})
        for output, array in zip(model.graph.output, wanted, strict=True):
            name = output.name
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
            np.testing.assert_allclose(
                found[name], array, rtol=tolerance, atol=tolerance, err_msg=name
            )
            np.testing.assert_array_equal(lone[name][0], found[name][3], err_msg=name)


def test_scalers_and_encoders_answer_as_onnx_runtime(tmp_path: Path) -> None:
    many = list(range(-300, 300))
    nodes = [
        node("Scaler", "f", "scaled", offset=[0.5, 1, -2, 3], scale=[2.0, 0.1, 3, 0.7]),
        node("Scaler", "w", "scaled_whole", offset=[0.5], scale=[2.0]),
        node("Scaler", "d", "scaled_double", offset=[0.1, 0.3], scale=[2.0, 1e-3]),
        node("Imputer", "f", "imputed", imputed_value_floats=[9.0, 8, 7, 6],
             replaced_value_float=NAN),
        node("Imputer", "f", "imputed_zero", imputed_value_floats=[5.0], replaced_value_float=0.0),
        node("Imputer", "w", "imputed_whole", imputed_value_int64s=[9, 8], replaced_value_int64=2),
        *(
            node("Normalizer", name, f"{name}_{norm}", norm=norm)
            for norm in ("MAX", "L1", "L2")
            for name in ("p", "w", "d")
        ),
        node("Binarizer", "p", "binary", threshold=1.0),
        node("OneHotEncoder", "w", "hot", cats_int64s=[3, -1, 0, 2]),
        node("OneHotEncoder", "p", "hot_float", cats_int64s=[0, 2, 1]),
        node("LabelEncoder", "w", "encoded", keys_int64s=[3, 0, 2], values_floats=[0.5, 2, -1]),
        node("LabelEncoder", "f", "encoded_float", keys_floats=[3.0, NAN, -2], default_int64=77,
             values_int64s=[5, 6, 7]),
        node("LabelEncoder", "w", "encoded_many", keys_int64s=many,
             values_int64s=[3 * one for one in many]),
        node("LabelEncoder", "d", "encoded_tensor",
             keys_tensor=numpy_helper.from_array(np.array([0.1, 3.0])),
             values_tensor=numpy_helper.from_array(np.array([0.7, 0.9])),
             default_tensor=numpy_helper.from_array(np.array([-9.0]))),
        node("ArrayFeatureExtractor", "f places", "taken"),
        node("ArgMax", "p", "most", axis=1, keepdims=0),
        node("ArrayFeatureExtractor", "names most", "named_line"),
        node("Reshape", "named_line line", "named"),
        node("FeatureVectorizer", "f p", "vector", inputdimensions=[4, 3]),
    ]  # fmt: skip
    constants = {
        "places": np.array([[2, 0, 3, 3]]),
        "names": np.array([40, 10, 30]),
        "line": np.array([-1]),
    }
    model = model_of(nodes, constants, ROWS)
    for place, output in reversed(list(enumerate(model.graph.output))):
        if output.name == "named_line":  # it has no axis of rows at its start
            del model.graph.output[place]
    check(model, ROWS, tmp_path)


def test_linear_models_answer_as_onnx_runtime(tmp_path: Path) -> None:
    transforms = ("NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO")
    supports = {
        "n_supports": 2, "support_vectors": SHORT.reshape(-1).tolist(),
        "coefficients": [0.7, -0.4], "rho": [0.3],
    }  # fmt: skip
    nodes = [
        *(
            node("LinearRegressor", "p", f"sums_{targets}_{transform}", targets=targets,
                 coefficients=WEIGHTS[: 3 * targets], intercepts=[0.1, 0.2, 0.3][:targets],
                 post_transform=transform)
            for targets in (1, 3)
            for transform in transforms
        ),
        node("LinearRegressor", "p", "bare", coefficients=WEIGHTS[:3]),
        *(
            classifier("p", f"class_{outer}_{transform}", labels[:most], transform, outer)
            for outer, most, labels in ((1, 2, [7, 3]), (2, 2, [0, 1]), (3, 3, [4, 9, -2]))
            for transform in transforms
        ),
        classifier("w3", "class_whole", [0, 1, 2], "NONE", 3),
        *(
            node("SVMRegressor", "p", f"svm_{kernel}", kernel_type=kernel,
                 kernel_params=[0.3, 0.5, 3.0], **supports)
            for kernel in ("LINEAR", "POLY", "RBF", "SIGMOID")
        ),
        node("SVMRegressor", "p", "svm_one", kernel_type="RBF", kernel_params=[0.3, 0.5, 3.0],
             one_class=1, **supports),
        node("SVMRegressor", "p", "svm_flat", kernel_type="LINEAR", kernel_params=[0.0] * 3,
             coefficients=WEIGHTS[:3], rho=[0.2]),
    ]  # fmt: skip
    rows = {"p": ROWS["p"], "w3": ROWS["p"].astype("i8")}
    check(model_of(nodes, {}, rows), rows, tmp_path)


def machine(output: str, classes: int, transform: str, *, proba: bool, **more: Any) -> Any:
    """Write a support vector machine over three columns, with two vectors of each class but one of the first."""
    rng = np.random.default_rng(classes)
    counts = [1, *[2] * (classes - 1)]
    pairs = classes * (classes - 1) // 2

    def drawn(count: int) -> list[float]:
        found: list[float] = rng.standard_normal(count).round(3).tolist()
        return found

    chances = {"prob_a": (-abs(rng.standard_normal(pairs))).tolist(), "prob_b": drawn(pairs)}
    given = {
        "kernel_type": "RBF",
        "kernel_params": [0.3, 0.5, 3.0],
        "classlabels_ints": [5, 3, 9, 1][:classes],
        "vectors_per_class": counts,
        "support_vectors": drawn(3 * sum(counts)),
        "coefficients": drawn((classes - 1) * sum(counts)),
        "rho": drawn(pairs),
        **(chances if proba else {}),
        **more,
    }
    return node("SVMClassifier", "p", f"label_{output} {output}", post_transform=transform, **given)


def test_support_vector_machines_answer_as_onnx_runtime(tmp_path: Path) -> None:
    transforms = ("NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO")
    nodes = [
        machine(f"m{classes}_{transform}_{proba}", classes, transform, proba=proba)
        for classes in (2, 3, 4)
        for transform in transforms
        for proba in (True, False)
    ]
    nodes += [
        machine(f"m{classes}_{kernel}", classes, "NONE", proba=proba, kernel_type=kernel)
        for classes, proba in ((2, False), (3, True))
        for kernel in ("LINEAR", "POLY", "SIGMOID")
    ]
    nodes.append(machine("positive", 2, "NONE", proba=False, coefficients=[0.5, 0.1, 0.2]))
    nodes.append(machine("square", 3, "NONE", proba=True, kernel_type="POLY",
                         kernel_params=[0.3, 0.5, 2.0]))  # fmt: skip
    nodes.append(machine("none_of_one", 3, "NONE", proba=False, vectors_per_class=[0, 3, 2]))
    rows = {"p": np.concatenate([ROWS["p"], RNG.standard_normal((40, 3)).astype("f4")])}
    check(model_of(nodes, {}, rows), rows, tmp_path)
    probit = machine("probit", 3, "PROBIT", proba=True)  # which loses digits around 0.5
    check(model_of([probit], {}, rows), rows, tmp_path, 1e-3)


def test_a_support_vector_machine_of_rows_that_are_not_numbers_answers_as_onnx_runtime(
    tmp_path: Path,
) -> None:
    nodes = [
        machine(f"m{classes}_{proba}", classes, "NONE", proba=proba)
        for classes in (2, 3)
        for proba in (True, False)
    ]
    rows = {"p": np.array([[NAN, 1, 2], [0.5, -1, 2], [1, NAN, NAN], [1, 0, 1]], "f4")}
    check(model_of(nodes, {}, rows), rows, tmp_path)


def encoded(**attributes: Any) -> Any:
    return node("LabelEncoder", "w", "y", **attributes)


@pytest.mark.parametrize(
    ("one", "why"),
    [
        (
            classifier("p", "y", ["good", "bad"], "NONE", 1),
            "the compiled engine returns only numbers: the output 'label_y' is texts",
        ),
        (
            node("OneHotEncoder", "w", "y", cats_int64s=[1, 2], zeros=0),
            "zeros=0, an error for categories that aren't known: export with "
            "handle_unknown='ignore'",
        ),
        (
            node("OneHotEncoder", "p", "y", cats_strings=["a"]),
            "categories that are texts",
        ),
        (encoded(keys_int64s=[1], values_strings=["a"]), "categories that are texts"),
        (encoded(keys_floats=[1.0], values_int64s=[1]), "int64 by 1 keys of float32, 1 values"),
        (
            node("Scaler", "p", "y", offset=[0.5, 1], scale=[1.0]),
            "2 offsets for 3 columns",
        ),
        (
            node("LinearRegressor", "p", "y", coefficients=[1.0, 2]),
            "2 coefficients, 0 intercepts for 1 scores of 3 columns",
        ),
        (
            node("LinearRegressor", "w", "y", coefficients=[1.0, 2]),
            r"its rows are int64, of shape [1, 2]",
        ),
        (node("Normalizer", "p", "y", norm="L3"), "its norm is 'L3'"),
        (machine("y", 2, "PROBIT", proba=False), "it applies PROBIT to one class"),
        (
            machine("y", 2, "NONE", proba=False, vectors_per_class=[0]),
            "vectors of 1 classes for 2 labels",
        ),
        (
            machine("y", 3, "NONE", proba=False, rho=[0.1]),
            "10 coefficients of 5 vectors, 1 rho",
        ),
        (
            machine("y", 3, "NONE", proba=False, support_vectors=[0.1]),
            "5 vectors of 1 numbers for 3 columns",
        ),
        (
            machine("y", 3, "NONE", proba=False, prob_a=[0.1]),
            "3 labels, 1 prob_a, 0 prob_b",
        ),
    ],
)
def test_what_is_not_covered_is_named_in_one_line(tmp_path: Path, one: Any, why: str) -> None:
    onnx.save(model_of([one], {}, ROWS), tmp_path / "m.onnx")
    request = tuple(
        TensorSpec(name, str(array.dtype), (1, *array.shape[1:])) for name, array in ROWS.items()
    )
    outputs = tuple(TensorSpec(name, "float32", ("n",)) for name in one.output)
    with pytest.raises(CandidateError) as error:
        lower(tmp_path / "m.onnx", request, outputs)
    assert str(error.value).endswith(why)
    assert "\n" not in str(error.value)


def test_no_operator_means_something_else_in_another_domain() -> None:
    """Operators are looked up by their name alone, in the domain of ONNX and in that of models."""
    domains: dict[str, set[str]] = {}
    for schema in onnx.defs.get_all_schemas():
        domains.setdefault(schema.domain, set()).add(schema.name)
    assert not domains[""] & domains[ML]
    assert set(classical.LOWERINGS) <= domains[ML] & set(LOWERINGS)


# -- exports of scikit-learn


def exported(estimator: Any, rows: Array) -> Any:
    """Return the ONNX model that skl2onnx writes of a fitted pipeline."""
    skl2onnx = pytest.importorskip("skl2onnx")
    zipped = hasattr(estimator, "decision_function") or hasattr(estimator, "predict_proba")
    options: Any = {id(estimator): {"zipmap": False}} if zipped else None
    return skl2onnx.to_onnx(estimator, rows[:1], options=options, target_opset={"": 17, ML: 3})


def table() -> tuple[Array, Array]:
    """Return a table with two columns of codes, and three classes."""
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((80, 5)).astype("f4")
    rows[:, 3:] = rng.integers(0, 4, (80, 2))
    return rows, (rows[:, 0] + rows[:, 3] > 0).astype("i8") + (rows[:, 1] > 1)


def pipelines() -> dict[str, Any]:
    pytest.importorskip("sklearn")
    from sklearn.compose import ColumnTransformer
    from sklearn.feature_selection import SelectKBest
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Binarizer, Normalizer, OneHotEncoder, StandardScaler
    from sklearn.svm import SVC, SVR

    columns = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), [0, 1, 2]),
            ("codes", OneHotEncoder(handle_unknown="ignore", sparse_output=False), [3, 4]),
        ]
    )
    return {
        "logistic": make_pipeline(columns, LogisticRegression()),
        "linear": make_pipeline(StandardScaler(), Normalizer(), LinearRegression()),
        "network": make_pipeline(
            StandardScaler(), MLPClassifier((8,), solver="lbfgs", max_iter=20)
        ),
        "bayes": make_pipeline(SelectKBest(k=3), GaussianNB()),
        "margin": make_pipeline(Binarizer(threshold=0.2), RidgeClassifier()),
        "kernel": make_pipeline(Normalizer("l1"), SVR()),
        **{
            f"vectors {kernel}": make_pipeline(
                StandardScaler(), SVC(kernel=kernel, probability=True, random_state=0)
            )
            for kernel in ("linear", "poly", "rbf", "sigmoid")
        },
        "vectors without probabilities": make_pipeline(StandardScaler(), SVC(C=10.0)),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        *("logistic", "linear", "network", "bayes", "margin", "kernel", "vectors linear"),
        *("vectors poly", "vectors rbf", "vectors sigmoid", "vectors without probabilities"),
    ],
)
def test_a_pipeline_of_scikit_learn_answers_as_onnx_runtime(name: str, tmp_path: Path) -> None:
    rows, classes = table()
    estimator = pipelines()[name].fit(rows, classes)
    few = rows[:12].copy()
    few[5, 3] = 9  # a code that isn't known
    if name == "logistic":
        few[3, 1] = NAN
    model = exported(estimator, rows)
    given = {model.graph.input[0].name: few}
    check(model, given, tmp_path, 1e-4)
    assert len(np.unique(estimator.predict(rows))) > 2


@pytest.mark.seconds
@pytest.mark.filterwarnings("ignore")
def test_support_vectors_for_ten_digits_give_scikit_learns_own_probabilities(
    tmp_path: Path,
) -> None:
    """From the live model, by hasten's own way to ONNX."""
    pytest.importorskip("skl2onnx")
    from sklearn.datasets import load_digits
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    rows, digits = load_digits(return_X_y=True)
    rows = rows.astype("f4")
    estimator = make_pipeline(StandardScaler(), SVC(probability=True, random_state=0))
    estimator.fit(rows[:400], digits[:400])
    model = load_model(estimator, None, tmp_path)
    target, engine = Target.host().with_threads(1), CompiledC()
    with engine.open(engine.build(model, target, tmp_path), target) as session:
        ((_, found),) = session.run({"rows": rows[400:500]}).items()
    np.testing.assert_allclose(found, estimator.predict_proba(rows[400:500]), atol=5e-6)
