"""Forests of decision trees as C: the same bits as ONNX Runtime's, and no damaged plan becomes C."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tests.support.plans import planned

from hasten.core.c_compiler import Compiler
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.base import Artifact, Session
from hasten.engines.compiled.engine import CompiledC
from hasten.engines.compiled.nodes.trees import LOWERINGS
from hasten.engines.compiled.operators.trees import Trees
from hasten.engines.compiled.plan import Plan
from hasten.engines.compiled.source import write
from hasten.errors import CandidateError, IntegrityError
from hasten.inputs.models.onnx import load

COLUMNS = 20
LEQ, LT, GTE, GT, EQ, NEQ, MEMBER = range(7)
AVERAGE, SUM, MIN, MAX = range(4)
NAMES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")
NUMBERS = (-2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 40.0)
"""Numbers that trees split at and rows have, so that equality is frequent."""


@dataclass
class Grower:
    """Random trees as lists of nodes: `(column, mode, number, tracks, set, true, false)`, or a leaf's number.

    Attributes:
        seed: Seed of the draws.
        dtype: Element type of numbers.
        modes: Modes that are drawn from.
        columns: Columns that are drawn from.
    """

    seed: int
    dtype: str
    modes: Sequence[int] = (LEQ,)
    columns: int = COLUMNS
    plain: bool = False

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def tree(self, leaves: int) -> Any:
        """Draw a tree."""
        if leaves == 1:
            return float(np.float32(self.rng.standard_normal()))
        left = int(self.rng.integers(1, leaves))
        split = self.split()
        return (*split, self.tree(left), self.tree(leaves - left))

    def even(self, depth: int) -> Any:
        """Draw a complete tree whose nodes of a level are alike, as CatBoost's are."""
        splits = [self.split() for _ in range(depth)]

        def grown(level: int) -> Any:
            if level == depth:
                return float(np.float32(self.rng.standard_normal()))
            return (*splits[level], grown(level + 1), grown(level + 1))

        return grown(0)

    def split(self) -> tuple[Any, ...]:
        """Draw an inner node without children."""
        drawn = self.rng.standard_normal() if self.rng.random() < 0.5 else self.rng.choice(NUMBERS)
        mode = int(self.rng.choice(self.modes))
        members = sorted(self.rng.choice(np.arange(1, 30), 5, replace=False).tolist())
        number = float(np.dtype(self.dtype).type(drawn))
        tracks = 0 if self.plain else int(self.rng.integers(2))
        return int(self.rng.integers(self.columns)), mode, number, tracks, members


def ensemble(trees: Sequence[Any], dtype: str, output: str, targets: int = 1, **more: Any) -> Any:
    """Write a `TreeEnsemble`; leaves are of each target by turns."""
    a: dict[str, list[Any]] = {key: [] for key in ("f", "m", "v", "t", "s", "roots", "w")}
    ends: dict[str, list[list[int]]] = {"true": [], "false": []}

    def add(tree: Any) -> list[int]:
        if isinstance(tree, float):
            a["w"].append(tree)
            return [len(a["w"]) - 1, 1]
        here = len(a["f"])
        for key, one in zip("fmvt", tree[:4], strict=True):
            a[key].append(one)
        if tree[1] == MEMBER:
            a["s"] += [*tree[4], np.nan]
        for side in ends.values():
            side.append([])
        ends["true"][here] = add(tree[5])
        ends["false"][here] = add(tree[6])
        return [here, 0]

    for tree in trees:
        a["roots"].append(add(tree)[0])
    if a["s"]:
        more["membership_values"] = numpy_helper.from_array(np.asarray(a["s"], dtype))
    for side, found in ends.items():
        more[f"nodes_{side}nodeids"] = [child for child, _ in found]
        more[f"nodes_{side}leafs"] = [leaf for _, leaf in found]
    return helper.make_node(
        "TreeEnsemble",
        ["x"],
        [output],
        domain="ai.onnx.ml",
        tree_roots=a["roots"],
        nodes_featureids=a["f"],
        nodes_modes=numpy_helper.from_array(np.asarray(a["m"], np.uint8)),
        nodes_splits=numpy_helper.from_array(np.asarray(a["v"], dtype)),
        nodes_missing_value_tracks_true=a["t"],
        leaf_targetids=[number % targets for number in range(len(a["w"]))],
        leaf_weights=numpy_helper.from_array(np.asarray(a["w"], dtype)),
        n_targets=targets,
        **more,
    )


def listed(
    kind: str, trees: Sequence[Any], outputs: Sequence[str], targets: Sequence[int], **more: Any
) -> Any:
    """Write one of the older operators, whose leaves have a weight for each target."""
    word = "target" if kind == "TreeEnsembleRegressor" else "class"
    rows: list[list[Any]] = []
    weights: list[tuple[int, int, int, float]] = []
    for tree, root in enumerate(trees):
        count = iter(range(10_000))

        def add(one: Any, tree: int = tree, count: Iterator[int] = count) -> int:
            here = next(count)
            if isinstance(one, float):
                rows.append([tree, here, 0, "LEAF", 0.0, 0, 0, 0])
                weights.extend((tree, here, target, one + target / 4) for target in targets)
                return here
            own = [tree, here, one[0], NAMES[one[1]], one[2], 0, 0, one[3]]
            rows.append(own)
            own[5], own[6] = add(one[5]), add(one[6])
            return here

        add(root)
    keys = ("treeids", "nodeids", "featureids", "modes", "values", "truenodeids", "falsenodeids")
    for key, values in zip(
        (*keys, "missing_value_tracks_true"), zip(*rows, strict=True), strict=True
    ):
        more[f"nodes_{key}"] = list(values)
    for key, values in zip(
        ("treeids", "nodeids", "ids", "weights"), zip(*weights, strict=True), strict=True
    ):
        more[f"{word}_{key}"] = list(values)
    return helper.make_node(kind, ["x"], outputs, domain="ai.onnx.ml", **more)


def written(path: Path, dtype: str, nodes: Sequence[Any], version: int) -> Path:
    """Write a model of several ensembles over the same rows."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    outputs = [name for node in nodes for name in node.output]
    graph = helper.make_graph(
        nodes,
        "trees",
        [helper.make_tensor_value_info("x", kind, ["rows", COLUMNS])],
        [onnx.ValueInfoProto(name=name) for name in outputs],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", version)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    for node in model.graph.node:
        for place, name in enumerate(node.output):
            classes = node.op_type == "TreeEnsembleClassifier"
            labels = classes and place == 0
            sizes = {attribute.name: attribute for attribute in node.attribute}
            width = len(sizes["classlabels_int64s"].ints) if classes else sizes["n_targets"].i
            found = next(one for one in model.graph.output if one.name == name)
            element = TensorProto.INT64 if labels else kind if version == 5 else TensorProto.FLOAT
            shape = ["rows"] if labels else ["rows", width]
            found.CopyFrom(helper.make_tensor_value_info(name, element, shape))
    onnx.save(model, path)
    return path


@dataclass
class Both:
    """A model as hasten compiles it, and in ONNX Runtime with one thread, which adds in order."""

    session: Session
    right: onnxruntime.InferenceSession
    text: str

    def answers(self, rows: Array) -> Iterator[tuple[str, Array, Array]]:
        """Yield each output's name, the answer and the right one."""
        got = self.session.run({"x": rows})
        names = [one.name for one in self.right.get_outputs()]
        for name, right in zip(names, self.right.run(names, {"x": rows}), strict=True):
            yield name, got[name], right


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], Both]]:
    """Open models by kind and element type, each once."""
    made: dict[tuple[str, str], Both] = {}
    opened = []

    def open_both(kind: str, dtype: str) -> Both:
        if (kind, dtype) not in made:
            folder = tmp_path_factory.mktemp("trees")
            path = written(folder / "model.onnx", dtype, *MODELS[kind](dtype))
            artifact = built(path, folder)
            context = CompiledC().open(artifact, Target.host().with_threads(1))
            opened.append(context)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            made[kind, dtype] = Both(
                context.__enter__(),
                onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]),
                c_of(artifact),
            )
        return made[kind, dtype]

    yield open_both
    for context in opened:
        context.__exit__(None, None, None)


def built(path: Path, folder: Path) -> Artifact:
    """Build a model."""
    return CompiledC().build(load(path), Target.host(), folder)


def c_of(artifact: Artifact) -> str:
    """Return a plan as C."""
    return write(Plan.read(artifact.path), artifact.files[0].read_bytes(), Target.host()).text


def many_kinds(dtype: str) -> tuple[list[Any], int]:
    """Write ensembles of version 5, of each kind that is treated in a way of its own."""
    every = Grower(1, dtype, range(7), 6)
    many = Grower(2, dtype, columns=1)
    forests = {
        "plain": [Grower(3, dtype, plain=True).tree(31) for _ in range(35)],
        "missing": [Grower(seed, dtype).tree(12) for seed in range(20)],
        "modes": [every.tree(9) for _ in range(12)],
        "thresholds": [many.tree(40) for _ in range(20)],
        "deep": [Grower(4, dtype, range(7), 9).tree(300), Grower(5, dtype).tree(7), 0.25],
        "even": [Grower(seed, dtype).even(1 + seed % 4) for seed in range(9)],
    }
    for trees in forests.values():
        for place, tree in enumerate(trees):
            if isinstance(
                tree, float
            ):  # a tree of one leaf is a node whose two leaves are the same
                trees[place] = (0, LEQ, 0.0, 0, [], tree, tree)
    nodes = [ensemble(trees, dtype, name) for name, trees in forests.items()]
    small = [every.tree(6) for _ in range(5)]
    nodes += [
        ensemble(small, dtype, f"aggregate{kind}", aggregate_function=kind) for kind in range(4)
    ]
    nodes.append(ensemble([every.tree(30) for _ in range(5)], dtype, "targets", 3))
    nodes.append(ensemble(small[:3] + small[:2], dtype, "copies"))
    return nodes, 5


def older(dtype: str) -> tuple[list[Any], int]:
    """Write regressors and classifiers of version 3."""
    grower = Grower(6, "float32", range(6), 6)
    trees = [grower.tree(8) for _ in range(6)]
    regressor, classifier = "TreeEnsembleRegressor", "TreeEnsembleClassifier"
    nodes = [
        listed(regressor, trees, ["sum"], [0], n_targets=1, base_values=[0.5]),
        listed(regressor, trees, ["mean"], [0], n_targets=1, aggregate_function="AVERAGE"),
        listed(regressor, trees, ["least"], [0, 1], n_targets=2, aggregate_function="MIN"),
    ]
    for name, transform, classes, labels in (
        ("one", "NONE", [0], [4, 2]),
        ("one", "LOGISTIC", [0], [0, 1]),
        ("two", "SOFTMAX", [0, 1], [0, 1]),
        ("three", "SOFTMAX_ZERO", [0, 1, 2], [7, 1, 3]),
        ("three", "LOGISTIC", [0, 1, 2], [0, 1, 2]),
    ):
        outputs = [f"label {name} {transform}", f"scores {name} {transform}"]
        more = {"classlabels_int64s": labels, "post_transform": transform}
        nodes.append(listed(classifier, trees, outputs, classes, **more))
    return nodes, 3


MODELS = {"many kinds": many_kinds, "older": older}

rows_of_numbers = st.lists(
    st.lists(
        st.one_of(
            st.sampled_from([*NUMBERS, 7.0, 29.0, np.nan, np.inf, -np.inf]),
            st.floats(-3, 3, width=32),
        ),
        min_size=COLUMNS,
        max_size=COLUMNS,
    ),
    min_size=1,
    max_size=20,
)
quickly = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@quickly
@given(rows=rows_of_numbers)
def test_forests_answer_with_the_bits_of_onnx_runtime(
    both: Callable[[str, str], Both], dtype: str, rows: list[list[float]]
) -> None:
    given_rows = np.asarray(rows, dtype)
    given_rows[:, :6] = np.where(  # ONNX Runtime truncates what it looks up in sets
        np.isfinite(given_rows[:, :6]), np.rint(given_rows[:, :6]), given_rows[:, :6]
    )
    for name, got, right in both("many kinds", dtype).answers(given_rows):
        np.testing.assert_array_equal(got, right, name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@quickly
@given(rows=rows_of_numbers)
def test_classifiers_and_regressors_answer_as_onnx_runtime(
    both: Callable[[str, str], Both], dtype: str, rows: list[list[float]]
) -> None:
    for name, got, right in both("older", dtype).answers(np.asarray(rows, dtype)):
        if name.startswith("label"):
            np.testing.assert_array_equal(got, right, name)
        else:
            np.testing.assert_allclose(got, right, rtol=2e-6, atol=1e-6, err_msg=name)


def test_small_trees_are_looked_at_whole_and_large_ones_walked_through(
    both: Callable[[str, str], Both],
) -> None:
    text = both("many kinds", "float32").text
    if {"avx2"} <= set(Target.host().isa):
        assert "pshufb" in text
    assert "tree[k][n[k]]" in text


def test_a_forest_of_one_row_and_of_many_answers_alike(both: Callable[[str, str], Both]) -> None:
    rows = np.random.default_rng(0).standard_normal((50, COLUMNS)).astype("float32")
    session = both("many kinds", "float32").session
    whole = session.run({"x": rows})
    for number in range(len(rows)):
        for name, array in session.run({"x": rows[number : number + 1]}).items():
            np.testing.assert_array_equal(array[0], whole[name][number])


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, bytes]:
    """Plan of a small forest with a set, and its constants."""
    folder = tmp_path_factory.mktemp("plan")
    grower = Grower(7, "float32", (LEQ, MEMBER), 4)
    node = ensemble([grower.tree(5) for _ in range(3)], "float32", "y")
    artifact = built(written(folder / "model.onnx", "float32", [node], 5), folder)
    return Plan.read(artifact.path), artifact.files[0].read_bytes()


def damaged(plan: tuple[Plan, bytes], which: str, change: Callable[[Array], None]) -> None:
    """Change a constant of the forest, and write C of the plan."""
    made, weights = plan
    (operation,) = (one for one in made.operations if isinstance(one, Trees))
    tensor = made.tensor(getattr(operation, which))
    content = bytearray(weights)
    array = np.frombuffer(content, tensor.dtype, tensor.size, tensor.offset or 0)
    change(array)
    made.check(len(content))
    write(made, bytes(content), Target.host())


def put(place: int, value: float) -> Callable[[Array], None]:
    """Return a change of one number."""

    def change(array: Array) -> None:
        array[place] = value

    return change


@pytest.mark.parametrize(
    ("which", "change", "why"),
    [
        ("features", put(0, -1), "15 values for"),
        ("features", put(-1, 2), "the nodes aren't whole trees"),
        ("features", lambda array: array.fill(0), "the nodes aren't whole trees"),
        ("features", lambda array: array.fill(-1), "values for"),
        ("features", put(0, COLUMNS), f"column {COLUMNS} of a row of {COLUMNS}"),
        ("thresholds", lambda array: array.fill(np.nan), "a threshold is NaN"),
        ("set_of", put(0, 99), "a set that doesn't exist"),
        ("set_of", put(0, -2), "a set that doesn't exist"),
        ("bounds", put(-1, 10_000), "a set lies outside"),
        ("bounds", put(0, -1), "a set lies outside"),
        ("sets", lambda array: array.fill(1), "the numbers of a set aren't in order"),
        ("columns", put(0, 3), "a column belongs to a tree that doesn't exist"),
        ("columns", put(0, -1), "a column belongs to a tree that doesn't exist"),
        ("columns", put(1, 1), "a column belongs to a target that doesn't exist"),
    ],
)
def test_a_damaged_forest_is_refused_before_any_c_is_written(
    plan: tuple[Plan, bytes], which: str, change: Callable[[Array], None], why: str
) -> None:
    damaged(plan, which, lambda array: None)
    with pytest.raises(IntegrityError, match=why):
        damaged(plan, which, change)


@quickly
@given(data=st.data())
def test_no_change_of_a_forest_makes_anything_else_fail(
    plan: tuple[Plan, bytes], data: st.DataObject
) -> None:
    which = data.draw(st.sampled_from(["features", "set_of", "bounds", "columns", "nan_high"]))

    def change(array: Array) -> None:
        place = data.draw(st.integers(0, len(array) - 1))
        limits = np.iinfo(array.dtype)
        array[place] = data.draw(st.integers(int(limits.min), int(limits.max)))

    with contextlib.suppress(IntegrityError):
        damaged(plan, which, change)


def test_the_work_of_a_forest_is_the_depth_of_its_trees(
    plan: tuple[Plan, bytes], tmp_path: Path
) -> None:
    grower = Grower(7, "float32", plain=True)
    trees = [grower.even(9) for _ in range(7)]  # ten nodes from each root to a leaf
    path = written(tmp_path / "m.onnx", "float32", [ensemble(trees, "float32", "y")], 5)
    assert Plan.read(built(path, tmp_path).path).work == 7 * 10
    made, weights = plan
    for steps in (0, 10_000):
        operations = tuple(
            replace(one, steps=steps) for one in made.operations if isinstance(one, Trees)
        )
        assert len(operations) == len(made.operations)
        with pytest.raises(IntegrityError, match=f"{steps} steps through 27 nodes"):
            replace(made, operations=operations).check(len(weights))


@pytest.mark.parametrize("said", [1, 26])
def test_a_forest_of_more_steps_than_its_plan_says_is_refused(
    plan: tuple[Plan, bytes], said: int
) -> None:
    made, weights = plan
    (operation,) = made.operations
    assert isinstance(operation, Trees)
    steps = operation.steps
    less = replace(operation, steps=min(said, steps - 1))
    lying = replace(made, operations=(less,))
    lying.check(len(weights))
    with pytest.raises(IntegrityError, match=f"{steps} steps through its trees, where the plan"):
        write(lying, weights, Target.host())


def test_sets_of_all_columns_together_are_bounded() -> None:
    columns, size = 4000, 20_000
    features = np.full(2 * columns + 1, -1, np.int32)
    features[:-1:2] = np.arange(columns)  # a chain, each of whose nodes has a leaf below it
    sets = np.where(features < 0, -1, 0).astype(np.int32)
    constants: dict[str, Array] = {
        "features": features,
        "thresholds": np.zeros(len(features), np.float32),
        "nan_high": np.zeros(len(features), np.uint8),
        "set_of": sets,
        "sets": np.arange(size, dtype=np.float32),
        "bounds": np.array([0, size], np.int32),
        "columns": np.zeros(2, np.int32),
        "values": np.zeros(columns + 1, np.float32),
    }
    names = {name: name for name in constants}
    operation = Trees("x", "y", combine="sum", steps=len(features), **names)
    row = {"x": np.zeros(columns, np.float32)}
    plan, weights = planned([operation], constants, row, {"y": ("float32", 1)})
    with pytest.raises(IntegrityError, match="too many sets of too many categories"):
        write(plan, weights, Target.host())


def test_a_forest_is_compiled_where_rows_are_not_apart(plan: tuple[Plan, bytes]) -> None:
    whole, weights = plan
    text = write(replace(whole, by_row=False), weights, Target.host()).text
    assert Compiler.find().compile(text).content


def test_a_forest_whose_values_are_too_few_is_refused(plan: tuple[Plan, bytes]) -> None:
    made, weights = plan
    (operation,) = made.operations
    assert isinstance(operation, Trees)
    short = replace(made.tensor(operation.values), size=3)
    cut = replace(made, tensors={**made.tensors, operation.values: short})
    with pytest.raises(IntegrityError, match="3 values for 15 leaves"):
        write(cut, weights, Target.host())


def test_a_tree_that_is_too_deep_is_refused() -> None:
    from hasten.engines.compiled.operators.forests import MOST_DEPTH, Forest

    deep = [False, True] * (MOST_DEPTH + 1)
    with pytest.raises(IntegrityError, match=f"deeper than {MOST_DEPTH}"):
        Forest.grow(np.asarray([*deep, True]))


def test_a_model_whose_nodes_form_a_cycle_is_left_to_other_engines(tmp_path: Path) -> None:
    node = ensemble([Grower(1, "float32").tree(4)], "float32", "y")
    for attribute in node.attribute:
        if attribute.name == "nodes_truenodeids":
            attribute.ints[:] = [0] * len(attribute.ints)
        if attribute.name == "nodes_trueleafs":
            attribute.ints[:] = [0] * len(attribute.ints)
    path = written(tmp_path / "model.onnx", "float32", [node], 5)
    with pytest.raises(CandidateError, match="its nodes aren't trees, or are too deep"):
        built(path, tmp_path)


def test_every_operator_of_trees_has_a_test() -> None:
    tested = {node.op_type for kind in MODELS.values() for node in kind("float32")[0]}
    assert tested == set(LOWERINGS)
