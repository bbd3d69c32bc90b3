"""FIL: forests of decision trees of scikit-learn, XGBoost and LightGBM.

All of them become a Treelite checkpoint, so that what is compared here is the file that Triton reads; it reads those of
Treelite 4 from 24.03 on. Source: docs/model_config.md and src/ of the FIL backend.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from adapter.exceptions import sentence
from adapter.method import MethodSpec
from adapter.model import Model
from adapter.tensor import Array
from adapter.triton.exporters.base import CannotConvert, Converted, Exporter, Scope, demand_first_axis
from adapter.triton.native import CLASSES, PAIR, VALUES, Native, NativeTensor

_FILE = "checkpoint.tl"
_MAX_BATCH_SIZE = 32_768  # rows; trees are fast, and a longer call is cut by the client
_ZERO = 1e-30  # LightGBM writes 1e-35 for 0, and takes what is smaller for it
_FEW = 16  # thresholds of one feature
_NUMERIC, _CATEGORICAL = 1, 2  # of treelite's node_type
_THRESHOLD = 0.5  # of a binary classifier; XGBoost, LightGBM and scikit-learn have no other


class Fil(Exporter):
    backend = "fil"
    libraries = {"treelite": "treelite"}  # noqa: RUF012  # declared ClassVar in Exporter

    def convert(self, model: Model, method: MethodSpec) -> Iterator[Converted]:
        import treelite

        demand_first_axis(method)
        native = model.load_model()
        (spec,) = _only(method.inputs, "inputs")
        (result,) = _only(method.outputs, "outputs")
        if len(spec.shape) != 2 or spec.shape[0] != -1:
            raise CannotConvert(f"its input has the shape {spec.shape}, and FIL takes rows of features")
        try:
            forest = _forest(treelite, native)
        except CannotConvert:
            raise
        except Exception as error:  # of Treelite, and of the library that the trees are of
            raise CannotConvert(f"Treelite cannot read it: {sentence(error)}") from error
        if forest.num_feature != spec.shape[1]:
            raise CannotConvert(f"its trees know {forest.num_feature} features, and its input has {spec.shape[1]}")
        scores, labels = _scores(forest), _labels(native)
        classifies = bool(labels) or scores > 1
        as_classes = bool(labels) and method.name == "predict"
        meaning = CLASSES if as_classes else PAIR if scores == 1 and result.shape[1:] == (2,) else VALUES
        parameters = {"model_type": "treelite_checkpoint", "predict_proba": _text(classifies and not as_classes)}
        # from 25.09 on output_class is called is_classifier; each release reads its own
        parameters |= dict.fromkeys(("output_class", "is_classifier"), _text(classifies))
        if classifies:
            parameters["threshold"] = str(_THRESHOLD)
        found = Native(
            self.backend,
            (NativeTensor("input__0", "FP32", (spec.shape[1],)),),
            (NativeTensor("output__0", "FP32", (1 if as_classes else scores,), meaning=meaning),),
            kind="KIND_AUTO",
            max_batch_size=_MAX_BATCH_SIZE,
            parameters=parameters,
            classes=labels if as_classes else (),
            columns=_columns(native),
        )

        def probabilities(arrays: Sequence[Array]) -> Sequence[Array]:
            (given,) = _run(treelite, forest, arrays)
            return [np.hstack([1 - given, given]) if scores == 1 else given]

        def original(arrays: Sequence[Array]) -> Sequence[Array]:
            return [native.predict_proba(arrays[0])]

        yield Converted(
            found,
            {_FILE: forest.serialize_bytes()},
            lambda arrays: _classes(_run(treelite, forest, arrays)) if as_classes else _run(treelite, forest, arrays),
            [_scope(forest)],
            (probabilities, original) if as_classes else None,
        )


def _only(specs: Sequence[Any], what: str) -> Sequence[Any]:
    if len(specs) != 1:
        raise CannotConvert(f"it has {len(specs)} {what}, and FIL has one")
    return specs


def _text(value: bool) -> str:
    return "true" if value else "false"


def _scores(forest: Any) -> int:
    """How many numbers the forest gives for a row; CannotConvert where FIL would make others of them."""
    header = forest.get_header_accessor()
    targets, classes = (int(header.get_field(field)[0]) for field in ("num_target", "num_class"))
    if targets != 1:
        raise CannotConvert(f"it has {targets} outputs for each row, and FIL has one")
    if classes > 1:
        # FIL puts this one in the place of the model's own
        wanted = "softmax" if header.get_field("leaf_vector_shape")[1] == 1 else "identity_multiclass"
        found = header.get_field("postprocessor")
        if found != wanted:
            raise CannotConvert(f"its scores are made by {found}, and FIL makes those of several classes by {wanted}")
    return classes


def _labels(native: Any) -> tuple[float, ...]:
    """The labels of a classifier, () for what is none."""
    if not (hasattr(native, "classes_") and hasattr(native, "predict_proba")):
        return ()
    classes = np.asarray(native.classes_)
    if classes.ndim != 1 or classes.dtype.kind not in "biuf":
        raise CannotConvert("its labels are no numbers")
    return tuple(label.item() for label in classes)


def _forest(treelite: Any, native: Any) -> Any:
    """The trees of a model, whichever library grew them."""
    library = type(native).__module__.partition(".")[0]
    if library == "xgboost":
        return treelite.frontend.from_xgboost(_booster(native))
    if library == "lightgbm":
        return treelite.frontend.from_lightgbm(native if type(native).__name__ == "Booster" else native.booster_)
    if library == "sklearn":
        if type(native).__name__.startswith("HistGradientBoosting"):
            # they are values of its training data, in float64
            raise CannotConvert(f"the thresholds of a {type(native).__name__} are finer than float32, which FIL takes")
        return treelite.sklearn.import_model(native)
    raise CannotConvert(f"a {type(native).__name__} is no model of scikit-learn, XGBoost or LightGBM")


def _booster(native: Any) -> Any:
    """The trees that a model of XGBoost predicts with: of one whose training stopped early, those up to the best."""
    if type(native).__name__ == "Booster":
        return native
    missing = getattr(native, "missing", np.nan)
    if missing is not None and not np.isnan(missing):
        raise CannotConvert(f"it takes {missing:g} for a missing value, and FIL takes NaN alone for one")
    booster, best = native.get_booster(), getattr(native, "best_iteration", None)
    return booster if best is None else booster[: best + 1]


def _columns(native: Any) -> tuple[str, ...]:
    """The names of the features where the library would compare them with those of a data frame."""
    names = getattr(native, "feature_names_in_", None)
    if names is None and type(native).__module__.startswith("xgboost"):
        names = getattr(native, "feature_names", None)
    return tuple(map(str, names)) if names is not None else ()


def _run(treelite: Any, forest: Any, arrays: Sequence[Array]) -> list[Array]:
    """The scores that FIL computes, as many for a row as the forest has."""
    (rows,) = (a.astype(np.float32) for a in arrays)
    return [np.asarray(treelite.gtil.predict(forest, rows), np.float32).reshape(len(rows), -1)]


def _classes(scores: Sequence[Array]) -> list[Array]:
    """The indices of classes that FIL makes of its scores."""
    (found,) = scores
    best = found.argmax(axis=1)[:, None] if found.shape[1] > 1 else found > _THRESHOLD
    return [best.astype(np.float32)]


def _scope(forest: Any) -> Scope:
    """Values around the thresholds of each feature: what lies beyond falls into the same leaves."""
    low, high = np.zeros(forest.num_feature), np.ones(forest.num_feature)
    thresholds = _thresholds(forest)
    for feature, values in enumerate(thresholds):
        if len(values):
            # a few of them may lie close together, and say little about the range of the feature
            few = 0.1 * max(1.0, float(np.abs(values).max())) if len(values) < _FEW else 0.0
            margin = max((values[-1] - values[0]) * 0.25, few)
            low[feature], high[feature] = values[0] - margin, values[-1] + margin
    return Scope(low, high, thresholds)


def _thresholds(forest: Any) -> list[Array]:
    """The thresholds of each feature in their order."""
    trees = [forest.get_tree_accessor(i) for i in range(forest.num_tree)]
    kinds, features, limits = (
        np.concatenate([tree.get_field(name) for tree in trees]) for name in ("node_type", "split_index", "threshold")
    )
    if (kinds == _CATEGORICAL).any():
        raise CannotConvert("its trees split by categories, which FIL may read otherwise out of numbers such as -0.5")
    # a split on what is missing has an infinite one
    numeric = (kinds == _NUMERIC) & (np.abs(limits) < np.finfo(np.float32).max)
    features, limits = features[numeric], limits[numeric].astype(float)
    limits[np.abs(limits) < _ZERO] = 0.0
    order = np.argsort(features, kind="stable")
    cuts = np.searchsorted(features[order], np.arange(1, forest.num_feature))
    return [np.unique(values) for values in np.split(limits[order], cuts)]
