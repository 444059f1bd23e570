"""Small operators of `ai.onnx.ml`: scalers, encoders, linear models, as ONNX Runtime computes them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.graph import Node
from hasten.engines.compiled.nodes.choices import gathered
from hasten.engines.compiled.nodes.movement import concatenated, taken
from hasten.engines.compiled.nodes.products import dense
from hasten.engines.compiled.nodes.reductions import done, reduced
from hasten.engines.compiled.nodes.scores import (
    Steps,
    cast,
    constant,
    labelled,
    post_transformed,
    transformed,
)
from hasten.engines.compiled.operators.couplings import MOST_CLASSES, Couple
from hasten.engines.compiled.values import Value

_FLOATS = ("float32", "float64")
_NUMBERS = (*_FLOATS, "int64", "int32")
_REFUSED = "categories that are texts"
_LEAST = 1e-7
"""Least probability of one of a pair of classes."""


def _row(node: Node, kinds: Sequence[str] = _NUMBERS) -> Value:
    """Return the first input, a matrix of numbers."""
    value = node.input(0)
    if value.dtype not in kinds or len(value.shape) != 2:
        node.refuse(f"its rows are {value.dtype}, of shape {list(value.shape)}")
    return value


def _floats(node: Node, name: str) -> Array:
    return np.asarray(node.attributes.get(name, []), np.float32)


def _each(node: Node, numbers: Array, columns: int, what: str) -> Array:
    """Return numbers that are for each column, or one for all of them."""
    if len(numbers) not in (1, columns):
        node.refuse(f"it has {len(numbers)} {what} for {columns} columns")
    return numbers


def _scaler(node: Node) -> None:
    row = _row(node)
    columns = row.shape[1]
    if row.dtype not in _FLOATS:
        row = cast(node, row, "float32")
    offset, scale = (
        constant(_each(node, _floats(node, name), columns, f"{name}s").astype(row.dtype))
        for name in ("offset", "scale")
    )
    scaled = done(node, "multiply", done(node, "subtract", row, offset), scale)
    node.give(cast(node, scaled, "float32"))


def _imputer(node: Node) -> None:
    row = _row(node, ("float32", "float64", "int64"))
    kind = "floats" if row.dtype in _FLOATS else "int64s"
    given = np.asarray(node.attributes.get(f"imputed_value_{kind}", []), row.dtype)
    replaced = node.attributes.get(f"replaced_value_{kind[:-1]}", 0)
    numbers = constant(_each(node, given, row.shape[1], "numbers"))
    steps = Steps(row, numbers)
    if replaced != replaced:
        absent = steps.do("is_nan", 0, dtype="bool")
    else:
        absent = steps.do("equal", 0, steps.number(replaced), dtype="bool")
    steps.do("where", absent, 1, 0)
    node.give(steps.end(node))


def _normalizer(node: Node) -> None:
    """Divide each row by its norm; a row whose norm is 0 stays.

    The norm MAX is the largest number, not the largest size.
    """
    row = cast(node, _row(node), "float32")
    norm = node.attributes.get("norm", "MAX")
    if norm not in ("MAX", "L1", "L2"):
        node.refuse(f"its norm is {norm!r}")
    if norm == "MAX":
        whole = reduced(node, row, [1], "maximum")
    else:
        part = done(node, "absolute" if norm == "L1" else "square", row)
        whole = reduced(node, part, [1], "sum")
    steps = Steps(row, whole)
    none = steps.do("equal", 1, steps.number(0), dtype="bool")
    by = steps.do("sqrt", 1) if norm == "L2" else 1
    steps.do("where", none, 0, steps.do("divide", 0, by))
    node.give(steps.end(node))


def _binarizer(node: Node) -> None:
    """Compare with a threshold; NaN, which ONNX Runtime refuses, stays NaN."""
    value = node.input(0)
    steps = Steps(value)
    bound = steps.number(node.attributes.get("threshold", 0.0))
    above = steps.do("cast", steps.do("greater", 0, bound, dtype="bool"), dtype=value.dtype)
    steps.do("where", steps.do("is_nan", 0, dtype="bool"), 0, above)
    node.give(steps.end(node))


def _linear(node: Node, row: Value, outer: int) -> Value:
    """Append the scores of a linear model, of shape `(1, outer)`."""
    inner = row.shape[1]
    coefficients, intercepts = (_floats(node, name) for name in ("coefficients", "intercepts"))
    if coefficients.size != outer * inner or len(intercepts) not in (0, outer):
        node.refuse(
            f"{coefficients.size} coefficients, {len(intercepts)} intercepts for {outer} scores of "
            f"{inner} columns"
        )
    weight = np.ascontiguousarray(coefficients.reshape(outer, inner).T)
    return dense(node, row, weight, intercepts if len(intercepts) else None)


def _linear_regressor(node: Node) -> None:
    scores = _linear(node, _row(node, ("float32",)), node.attributes.get("targets", 1))
    transform = node.attributes.get("post_transform", "NONE")
    transformed(node, scores, np.zeros(0), transform, "float32")


def _linear_classifier(node: Node) -> None:
    """Lower to scores and the label of the largest one; a single score is compared with 0."""
    row = cast(node, _row(node), "float32")
    a = node.attributes
    labels = a.get("classlabels_ints") or a.get("classlabels_strings") or [0, 1]
    outer = len(a.get("coefficients", ())) // row.shape[1]
    scores = _linear(node, row, outer)
    transform = a.get("post_transform", "NONE")
    if outer == 1:
        if len(labels) != 2:
            node.refuse(f"it has one score for {len(labels)} labels")
        steps = Steps(replace(scores, shape=(1,)))
        above = steps.do("greater", 0, steps.number(0), dtype="bool")
        steps.do("cast", above, dtype="int64")
        labelled(node, steps.end(node), labels)
        node.give(_both(node, scores, transform), 1)
        return
    if outer != len(labels):
        node.refuse(f"it has {outer} scores for {len(labels)} labels")
    labelled(node, replace(reduced(node, scores, [1], "argmax"), shape=(1,)), labels)
    node.give(post_transformed(node, scores, transform), 1)


def _both(node: Node, score: Value, transform: str) -> Value:
    """Append the scores of both classes: logistics of a score's two signs, or 1 less it and itself."""
    if transform == "PROBIT":
        node.refuse("it applies PROBIT to one class")
    logistic = transform == "LOGISTIC"
    signs = constant(np.asarray([[-1, 1]], np.float32))
    starts = constant(np.asarray([[0 if logistic else 1, 0]], np.float32))
    both = done(node, "add", done(node, "multiply", score, signs), starts)
    return done(node, "sigmoid", both) if logistic else both


def _one_hot_encoder(node: Node) -> None:
    value = node.input(0)
    categories = np.asarray(node.attributes.get("cats_int64s", []), np.int64)
    if not categories.size or value.dtype not in _NUMBERS:
        node.refuse(_REFUSED)
    if not node.attributes.get("zeros", 1):
        node.refuse(
            "zeros=0, an error for categories that aren't known: export with handle_unknown='ignore'"
        )
    steps = Steps(replace(value, shape=(*value.shape, 1)), constant(categories))
    whole = 0 if value.dtype == "int64" else steps.do("cast", 0, dtype="int64")
    steps.do("cast", steps.do("equal", whole, 1, dtype="bool"), dtype="float32")
    node.give(steps.end(node))


def _listed(node: Node, name: str) -> Array:
    """Return the keys or values of an encoder."""
    tensor = node.attributes.get(f"{name}_tensor")
    for kind, dtype in (("floats", "float32"), ("int64s", "int64")):
        if f"{name}_{kind}" in node.attributes:
            return np.asarray(node.attributes[f"{name}_{kind}"], dtype)
    if tensor is None or str(tensor.dtype) not in _NUMBERS:
        node.refuse(_REFUSED)
    return np.ravel(tensor)


def _label_encoder(node: Node) -> None:
    """Lower to the first key that each number equals, and that key's value; NaN equals NaN."""
    value, keys, values = node.input(0), _listed(node, "keys"), _listed(node, "values")
    if value.dtype != str(keys.dtype) or len(keys) != len(values):
        node.refuse(f"{value.dtype} by {len(keys)} keys of {keys.dtype}, {len(values)} values")
    default = node.attributes.get("default_tensor")
    if default is None:
        name, usual = ("float", -0.0) if values.dtype.kind == "f" else ("int64", -1)
        default = node.attributes.get(f"default_{name}", usual)
    table = np.append(values, np.ravel(np.asarray(default, values.dtype))[:1])
    # Whatever is no key meets the last place, where the default stands.
    last = np.arange(len(table)) == len(keys)
    steps = Steps(
        replace(value, shape=(*value.shape, 1)),
        constant(np.append(keys, keys[:1])),
        constant(last),
    )
    same = steps.do("equal", 0, 1, dtype="bool")
    if keys.dtype.kind == "f":
        nan = [steps.do("is_nan", at, dtype="bool") for at in (0, 1)]
        same = steps.do("or", same, steps.do("and", *nan, dtype="bool"), dtype="bool")
    steps.do("cast", steps.do("or", same, 2, dtype="bool"), dtype="int32")
    met = steps.end(node)
    place = reduced(node, met, [len(value.shape)], "argmax")
    node.give(gathered(node, constant(table), replace(place, shape=value.shape), 0))


def _array_feature_extractor(node: Node) -> None:
    """Lower to a choice along the last axis, by constant or computed places."""
    value, places = node.inputs
    axis = len(value.shape) - 1
    count = int(np.prod(places.shape))
    if places.constant is not None:
        chosen = places.constant.reshape(-1)
        if not 0 <= chosen.min() <= chosen.max() < value.shape[axis]:
            node.refuse(f"its indices go beyond {value.shape[axis]}")
        if value.batch == axis:
            node.mixes_rows()
        made = replace(taken(node, value, chosen, axis), batch=value.batch)
    elif places.batch is None or count == 1:
        batch = None if places.batch is None else 0
        made = gathered(node, value, replace(places, shape=(count,), batch=batch), axis)
    else:
        node.refuse(f"its indices are computed, of shape {list(places.shape)}")
    if axis == 0:
        batch = None if made.batch is None else made.batch + 1
        made = replace(made, shape=(1, *made.shape), batch=batch)
    node.give(made)


def _feature_vectorizer(node: Node) -> None:
    sizes = list(node.attributes.get("inputdimensions", []))
    found = []
    for value in node.inputs:
        if len(value.shape) != 2 or value.dtype not in _NUMBERS:
            node.refuse(f"its rows are {value.dtype}, of shape {list(value.shape)}")
        found.append(cast(node, value, "float32"))
    if sizes != [value.shape[1] for value in found]:
        node.refuse(f"columns {[value.shape[1] for value in found]} as {sizes}")
    node.give(concatenated(node, found, 1))


def _svm_regressor(node: Node) -> None:
    """Lower to kernels of the support vectors and their weighted sum, or to a linear model."""
    row, a = _row(node, ("float32",)), node.attributes
    supports, columns = a.get("n_supports", 0), row.shape[1]
    rho, coefficients = _floats(node, "rho"), _floats(node, "coefficients")
    if a.get("post_transform", "NONE") != "NONE" or len(rho) != 1:
        node.refuse(f"post_transform {a['post_transform']!r}, {len(rho)} rho")
    if supports:
        vectors = _floats(node, "support_vectors").reshape(supports, columns)
        found = _kernel(node, row, vectors)
    else:
        found = row
    sums = dense(node, found, coefficients.reshape(-1, 1), rho)
    if a.get("one_class", 0):
        steps = Steps(sums)
        above = steps.do("greater", 0, steps.number(0), dtype="bool")
        steps.do("where", above, steps.number(1), steps.number(-1))
        sums = steps.end(node)
    node.give(sums)


def _kernel(node: Node, row: Value, vectors: Array) -> Value:
    """Append the kernels of a row and each of some vectors, of shape `(1, vectors)`."""
    kind = node.attributes.get("kernel_type", "LINEAR")
    gamma, shift, degree = node.attributes.get("kernel_params", (0.0, 0.0, 0.0))
    if kind == "RBF":
        each = replace(row, shape=(1, *row.shape), batch=None)
        far = done(node, "square", done(node, "subtract", each, constant(vectors[None])))
        distances = reduced(node, far, [2], "sum")
        steps = Steps(replace(distances, shape=distances.shape[:2], batch=row.batch))
        steps.do("exp", steps.do("multiply", 0, steps.number(-gamma)))
        return steps.end(node)
    products = dense(node, row, np.ascontiguousarray(vectors.T), None)
    if kind == "LINEAR":
        return products
    if kind not in ("POLY", "SIGMOID"):
        node.refuse(f"its kernel is {kind!r}")
    steps = Steps(products)
    inner = steps.do("add", steps.do("multiply", 0, steps.number(gamma)), steps.number(shift))
    if kind == "SIGMOID":
        steps.do("tanh", inner)
    else:
        steps.do("power", inner, steps.number(degree))
    return steps.end(node)


def _svm_classifier(node: Node) -> None:
    """Lower to the sums of each pair of classes, votes by their signs, and scores.

    Source: onnxruntime/core/providers/cpu/ml/svmclassifier.cc.
    """
    row, a = cast(node, _row(node), "float32"), node.attributes
    labels = a.get("classlabels_ints") or a.get("classlabels_strings") or []
    transform, pairs = a.get("post_transform", "NONE"), len(labels) * (len(labels) - 1) // 2
    slopes, shifts = (_floats(node, name)[:pairs] for name in ("prob_a", "prob_b"))
    if len(labels) < 2 or {len(slopes), len(shifts)} not in ({0}, {pairs}):
        node.refuse(f"{len(labels)} labels, {len(slopes)} prob_a, {len(shifts)} prob_b")
    sums = _pair_sums(node, row, len(labels), pairs)
    labelled(node, _voted(node, sums, len(labels)), labels)
    scores = cast(node, sums, "float32")
    if len(slopes):
        scores = _coupled(node, scores, slopes, shifts, len(labels))
    elif len(labels) == 2:
        signs = constant(np.asarray([[-1, 1]], np.float32))
        plain = transform == "NONE"
        both = done(node, "multiply", scores, signs) if plain else _both(node, scores, transform)
        node.give(both, 1)
        return
    node.give(post_transformed(node, scores, transform), 1)


def _pair_sums(node: Node, row: Value, classes: int, pairs: int) -> Value:
    """Append the sums of the pairs of classes 0 and 1, 0 and 2, ..., 1 and 2, ..., of shape `(1, pairs)`.

    A pair's support vectors are those of its two classes. ONNX Runtime adds in float64.
    """
    counts = np.asarray(node.attributes.get("vectors_per_class", []), np.int64)
    coefficients, rho, vectors = (
        _floats(node, name) for name in ("coefficients", "rho", "support_vectors")
    )
    if len(counts) != classes or min(counts) < 0 or not (supports := int(counts.sum())):
        node.refuse(f"vectors of {len(counts)} classes for {classes} labels")
    if coefficients.size != (classes - 1) * supports or len(rho) < pairs:
        node.refuse(f"{coefficients.size} coefficients of {supports} vectors, {len(rho)} rho")
    if vectors.size != supports * row.shape[1]:
        node.refuse(f"{supports} vectors of {vectors.size} numbers for {row.shape[1]} columns")
    factors = coefficients.reshape(classes - 1, supports)
    ends = np.cumsum(counts)
    weights = np.zeros((supports, pairs))
    for number, (i, j) in enumerate(itertools.combinations(range(classes), 2)):
        for own, other in ((i, j - 1), (j, i)):
            part = slice(ends[own] - counts[own], ends[own])
            weights[part, number] = factors[other, part]
    kernels = _kernel(node, row, vectors.reshape(supports, -1))
    return dense(node, cast(node, kernels, "float64"), weights, rho[:pairs].astype(np.float64))


def _voted(node: Node, sums: Value, classes: int) -> Value:
    """Append the class with the most votes, the first one of several, of shape `(1,)`.

    A pair's vote is the first class's where the sum is above 0, and else the second one's.
    """
    steps = Steps(sums)
    steps.do("cast", steps.do("greater", 0, steps.number(0), dtype="bool"), dtype="float32")
    votes = np.zeros((sums.shape[1], classes), np.float32)
    for number, (i, j) in enumerate(itertools.combinations(range(classes), 2)):
        votes[number, [i, j]] = 1, -1
    lost = np.arange(classes, dtype=np.float32)  # as if each pair had voted for its second class
    most = reduced(node, dense(node, steps.end(node), votes, lost), [1], "argmax")
    return replace(most, shape=(1,))


def _coupled(node: Node, sums: Value, slopes: Array, shifts: Array, classes: int) -> Value:
    """Append the classes' probabilities, by the probability of each pair's first class."""
    steps = Steps(sums, constant(slopes[None]), constant(shifts[None]))
    away = steps.do("sigmoid", steps.do("add", steps.do("multiply", 0, 1), 2))
    first = steps.do("subtract", steps.number(1), away)
    first = steps.do("maximum", first, steps.number(_LEAST))
    steps.do("minimum", first, steps.number(1 - _LEAST))
    if classes > MOST_CLASSES:
        node.refuse(f"probabilities of {classes} classes")
    found = steps.end(node)
    made = node.graph.new("float32", (1, classes), found.batch)
    node.graph.add(Couple(found.tensor, made.tensor, classes))
    return made


LOWERINGS: Mapping[str, Callable[[Node], None]] = {
    "Scaler": _scaler,
    "Imputer": _imputer,
    "Normalizer": _normalizer,
    "Binarizer": _binarizer,
    "LinearRegressor": _linear_regressor,
    "LinearClassifier": _linear_classifier,
    "OneHotEncoder": _one_hot_encoder,
    "LabelEncoder": _label_encoder,
    "ArrayFeatureExtractor": _array_feature_extractor,
    "FeatureVectorizer": _feature_vectorizer,
    "SVMClassifier": _svm_classifier,
    "SVMRegressor": _svm_regressor,
}
"""Lowering of each operator."""
