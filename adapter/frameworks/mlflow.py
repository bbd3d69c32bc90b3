"""`adapter.mlflow`: models of MLflow, of whatever flavor, served as its `pyfunc`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from adapter.exceptions import InvalidArgument, sentence
from adapter.frameworks.base import Framework, described
from adapter.model import Model, ModelInfo

FOLDER = "mlflow_model"


class MLflow(Framework):
    name = "mlflow"
    libraries = {"mlflow": "mlflow"}  # noqa: RUF012  # declared ClassVar in Framework
    described_when_loaded = True
    supports_cpu_multi_threading = True

    def save_model(self, name: Any, model: Any, **options: Any) -> Model:
        """Save the model that lies at a URI of MLflow or in a folder; `options` are those of every framework.

        Source: `mlflow.artifacts.download_artifacts`, which knows `runs:/…`, `models:/…`, `s3://…` and the like.
        """
        if not isinstance(model, (str, Path)):
            raise InvalidArgument(
                "adapter.mlflow imports a model that MLflow has saved: give import_model its URI or folder, not "
                f"{described(model)}."
            )
        with self._library(f"the model {name}"):
            return super().save_model(name, _folder_of(str(model)), **options)

    import_model = save_model

    def save(self, model: Any, folder: Path, **options: Any) -> None:
        shutil.copytree(model, folder / FOLDER)

    def load(self, folder: Path, info: ModelInfo, **options: Any) -> Any:
        import mlflow

        return mlflow.pyfunc.load_model(str(folder / FOLDER))

    def modules(self, model: Any) -> set[str]:
        flavor = self.record(model)
        loader = (flavor.flavors.get("python_function") or {}).get("loader_module", "")
        # mlflow.sklearn loads sklearn, mlflow.xgboost xgboost; the folder lists what else it needs
        return {*self.libraries, loader.removeprefix("mlflow.").partition(".")[0]}

    def record(self, model: Any) -> Any:
        """What MLflow's own file says of a model at a URI."""
        import mlflow

        return mlflow.models.Model.load(str(model))

    def get_mlflow_model(self, model: str | Model) -> Any:
        """Return `mlflow.models.Model`, the record that MLflow keeps of a saved model."""
        found = self.get(model)
        with self._library(f"the model {found.tag}"):
            return self.record(found.folder / FOLDER)


def _folder_of(uri: str) -> Path:
    """The folder of a model, fetched where it lies elsewhere."""
    import mlflow

    try:
        found = Path(mlflow.artifacts.download_artifacts(uri))
    except (mlflow.exceptions.MlflowException, OSError) as error:
        raise InvalidArgument(f"There is no model of MLflow at {uri!r}: {sentence(error)}") from error
    if not (found / "MLmodel").exists():
        raise InvalidArgument(f"{uri} has no file MLmodel, so it is no model that MLflow has saved.")
    return found


framework = MLflow()
save_model = framework.save_model
import_model = framework.import_model
load_model = framework.load_model
get = framework.get
get_mlflow_model = framework.get_mlflow_model
get_runnable = framework.get_runnable
to_runner = framework.to_runner
