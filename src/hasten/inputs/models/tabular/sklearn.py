"""scikit-learn's models: estimators, and pipelines that end in one, of scikit-learn or of another library."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hasten.core.archives import excess
from hasten.core.memory_folder import content_of
from hasten.errors import InputError, first_words, told, visible
from hasten.inputs.models.tabular.base import (
    LIMITED,
    Library,
    Tabular,
    check_survives,
    described,
    library_of,
    most_memory,
    named_columns,
)
from hasten.inputs.models.tabular.building import Building, ColumnBlock
from hasten.inputs.models.tabular.graph import INPUT, Graph
from hasten.inputs.models.tabular.lightgbm_text import END
from hasten.inputs.models.tabular.own_answers import OwnAnswers, Rows, in_frame, numbers_in
from hasten.inputs.pipeline.rows import Row

_TRUSTED = (
    "catboost.core.CatBoost",
    "catboost.core.CatBoostClassifier",
    "catboost.core.CatBoostRanker",
    "catboost.core.CatBoostRegressor",
    "collections.OrderedDict",
    "lightgbm.basic.Booster",
    "lightgbm.sklearn.LGBMClassifier",
    "lightgbm.sklearn.LGBMRanker",
    "lightgbm.sklearn.LGBMRegressor",
    "numpy.dtype",
    "scipy.interpolate._interpolate.interp1d",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.tree._tree.Tree",
    "sklearn.utils._bunch.Bunch",
    "xgboost.core.Booster",
    "xgboost.sklearn.XGBClassifier",
    "xgboost.sklearn.XGBRFClassifier",
    "xgboost.sklearn.XGBRFRegressor",
    "xgboost.sklearn.XGBRanker",
    "xgboost.sklearn.XGBRegressor",
)
"""Types that hold data alone, and that skops doesn't trust by itself. CatBoost's read their model from the bytes of
a .cbm file, the others' from those that their libraries pickle."""

_BOOSTING = {"catboost": "CatBoost", "lightgbm": "LightGBM", "xgboost": "XGBoost"}
"""Modules of libraries that read their models in C, and the libraries' names."""
_KEPT = ("CachedNode", "ObjectNode", "TypeNode")
"""Kinds of skops's entries that call no constructor: theirs may read any file."""

_READ = (
    """
import gc, importlib, json, os, sys
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_THREAD_LIMIT"] = "1"

class NoTorch:
    def find_spec(name, path=None, target=None):
        if name == "torch":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NoTorch)
from skops.io import loads
for name in sys.argv[2].split(","):
    importlib.import_module(name)
"""
    + LIMITED
    + """
texts = []
if "lightgbm" in sys.modules:
    def kept(text, *_):
        texts.append(text.value.decode())
        return 0
    sys.modules["lightgbm"].basic._LIB.LGBM_BoosterLoadModelFromString = kept
if "catboost" in sys.modules:
    base = sys.modules["catboost"].core._CatBoostBase
    read = base._deserialize_model
    def sized(self, content):
        if int.from_bytes(content[4:8], "little") > len(content) - 8:
            raise ValueError("its model of CatBoost states more bytes than it has")
        read(self, content)
    base._deserialize_model = sized
try:
    model = loads(content, trusted=sys.argv[4:])
    if "xgboost" in sys.modules:
        for one in gc.get_objects():
            if type(one) is sys.modules["xgboost"].Booster:
                one.save_raw("json")
    said = {"texts": texts}
except Exception as error:
    said = {"refused": f"{type(error).__name__}: {error}"}
sys.stdout.write("\\0" + json.dumps(said))
sys.stdout.flush()
os._exit(0)
"""
)
"""Program that reads a file's content, given the libraries of its models, and the types to trust.

Prints, after a zero, why it can't be read, or the texts that LightGBM would read, which it doesn't read here.
No type is of torch, which skops would import for seconds.
"""


class ScikitLearn(Library):
    """scikit-learn: a fitted estimator or pipeline, or a .skops file of one."""

    name = "scikit-learn"
    module = "sklearn"
    suffixes = (".skops",)

    def read(self, path: Path) -> Any:
        """Read a .skops file, if skops trusts all of its types, or they are among `_TRUSTED`."""
        from skops.io import get_untrusted_types, loads

        content = content_of(path)  # once: what is checked is what is loaded
        try:
            if said := excess(io.BytesIO(content)):
                raise InputError(f"{path} can't be unpacked safely: {said}")
            found = get_untrusted_types(data=content)
            unknown = [name for name in found if name not in _TRUSTED]
            if unknown:
                raise InputError(
                    f"{path} contains types that aren't known to be safe: "
                    f"{visible(', '.join(unknown))[:300]}; if you "
                    "trust them, load it in a my.py (model = skops.io.load(..., trusted=[...])) and give "
                    "my.py:model"
                )
            trusted = [name for name in found if name in _TRUSTED]
            if modules := sorted(_BOOSTING.keys() & {name.partition(".")[0] for name in found}):
                _check_boosting(path, content, modules, trusted)
            _check_nodes()
            return loads(content, trusted=trusted)
        except InputError:
            raise
        except Exception as error:  # zipfile's, json's, and whatever a type's own state raises
            raise _refused(path, told(error)) from error

    def describe(self, model: Any) -> Tabular:
        """Describe a fitted estimator or pipeline."""
        from hasten.inputs.models.tabular.sklearn_composed import split
        from hasten.inputs.models.tabular.sklearn_models import head_of

        model = getattr(model, "best_estimator_", model)
        steps, final = split(model)
        head = head_of(final)
        names = _columns(model, steps, final)
        # The first pass learns which words there are, and whether float32 would change an answer.
        first = _survey(steps, head, names, "float64")
        narrow = (first.smooth and head.smooth) or (first.moved and head.narrow)
        dtype = "float32" if narrow else "float64"
        row = _survey(steps, head, names, dtype).row()
        return Tabular(
            head.library,
            row,
            head.labels,
            head.width,
            head.dtype or dtype,
            partial(_write, steps, head.write, names, dtype),
            head.scored,
        )

    def own_answers(self, model: Any, described: Tabular) -> OwnAnswers:
        """Return the answers of a live model; some arithmetic is in float32 in the ONNX file alone."""
        from sklearn.base import is_outlier_detector

        row = described.row
        asked = "predict_proba" if described.labels else "predict"
        if described.scored or is_outlier_detector(model):
            asked = "decision_function"

        def answer(rows: Rows) -> Any:
            ask = getattr(model, asked)
            try:
                return ask(_as_given(model, row, rows))
            except (
                ValueError
            ):  # of a library behind a pipeline that takes pandas's categories alone
                if not row.words:
                    raise
                return ask(in_frame(row, rows))

        return OwnAnswers(answer, 1e-3, missing_words=False)


def _refused(path: Path, said: str) -> InputError:
    return InputError(
        f"{path} can't be read by skops: it is cut short, its version is too new, or it "
        f"isn't a skops file ({said})"
    )


def _check_nodes() -> None:
    """Let skops check the nodes of trees from now on: scikit-learn crashes where these have no axis."""
    from skops.io._audit import NODE_TYPE_MAPPING
    from skops.io._protocol import PROTOCOL
    from skops.io._sklearn import TreeNode

    class Checked(TreeNode):  # type: ignore[misc]
        """Tree whose nodes are a list of rows."""

        def _construct(self) -> Any:
            if np.ndim(nodes := self.attrs.construct()["nodes"]) != 1:
                raise ValueError(f"the nodes of a tree have {np.ndim(nodes)} axes, not one")
            return super()._construct()

    NODE_TYPE_MAPPING["TreeNode", PROTOCOL] = Checked


def _check_boosting(path: Path, content: bytes, modules: list[str], trusted: list[str]) -> None:
    """Check a file with models of libraries that may crash on damaged ones.

    Args:
        path: The file.
        content: Its content.
        modules: Modules of these libraries.
        trusted: Types to trust.

    Raises:
        InputError: a library can't read its model, or an entry isn't as skops writes it.
    """
    from hasten.inputs.models.tabular.lightgbm import survived

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        left: list[Any] = [json.loads(archive.read("schema.json"))]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            own = str(one.get("__module__")).partition(".")[0] in _BOOSTING
            if own and one.get("__loader__") not in _KEPT:
                raise InputError(
                    f"{path} makes a {one.get('__class__')!r:.60} by a {one.get('__loader__')!r:.60}, which skops "
                    "doesn't: save the model again"
                )
            left += one.values()
        elif isinstance(one, list):
            left += one
    names, most = ", ".join(_BOOSTING[one] for one in modules), most_memory(content)
    printed = check_survives(path, names, _READ, ",".join(modules), most, *trusted, content=content)
    *_, last = printed.partition("\0")  # before it, there may be warnings
    said = json.loads(last) if last else {"refused": f"{names} can't read it"}
    if "refused" in said:
        raise _refused(path, visible(first_words(said["refused"]))[:200])
    for text in said["texts"]:
        if not text.encode().startswith(survived(path, text.encode()).partition(END)[0] + END):
            raise InputError(f"{path} is damaged: LightGBM wouldn't find its trees by their sizes")


def _as_given(model: Any, row: Row, rows: Rows) -> Any:
    """Return rows as a frame, if the model knows its columns by their names; else as an array."""
    if hasattr(model, "feature_names_in_"):
        import pandas

        found = pandas.DataFrame([list(one) for one in rows], columns=list(row.columns))
        texts = {*row.hashed, *(column for column, _ in row.words)}
        return found.astype({column: float for column in row.columns if column not in texts})
    if row.words or row.hashed:
        return np.array([list(one) for one in rows], object)
    return numbers_in(rows)


def _columns(model: Any, steps: list[Any], final: Any) -> tuple[str, ...]:
    """Return the names of a model's columns."""
    for one in (model, *steps, final):
        names = getattr(one, "feature_names_in_", None)
        try:
            count = getattr(one, "n_features_in_", None)
        except AttributeError:
            count = None
        if count:  # CatBoost's says 0 once it was read from a file
            return named_columns(names, int(count), "x")
        break
    library = library_of(final)
    if not steps and library is not None and library.module != "sklearn":
        return described(final).row.columns
    raise InputError(f"this {type(model).__name__} isn't fitted: fit it first")


def _survey(steps: list[Any], head: Any, names: tuple[str, ...], dtype: str) -> Building:
    """Write the steps before the model to learn what they say of the columns."""
    from hasten.inputs.models.tabular.sklearn_composed import stepped
    from hasten.inputs.models.tabular.sklearn_models import survey

    building = Building(Graph(len(names), dtype), dtype, names)
    survey(building, stepped(building, steps, building.begin(INPUT)), head)
    building.infinite = head.takes_infinite and not steps
    return building


def _write(
    steps: list[Any],
    write: Callable[[Building, ColumnBlock], str],
    names: tuple[str, ...],
    dtype: str,
    graph: Graph,
    rows: str,
) -> str:
    """Add the steps and the model to a graph."""
    from hasten.inputs.models.tabular.sklearn_composed import stepped

    building = Building(graph, dtype, names)
    return write(building, stepped(building, steps, building.begin(rows)))
