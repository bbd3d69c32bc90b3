"""A model of Triton's python backend in the place of another backend: its tensors, and what that computes of them.

It is copied as `model.py` into an entry that was exported for a native backend; the engine that tests have has none.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # exists in Triton's stub only

from adapter.triton.dlpack import write_dlpack

NUMPY = {"FP32": np.float32, "FP64": np.float64, "INT64": np.int64, "BOOL": np.bool_}


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"]
        self.native = json.loads((folder / "spec.json").read_text())["native"]
        self.run = {"fil": forest, "onnxruntime": session, "pytorch": module}[self.native["backend"]](
            folder, self.native
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> Any:
        arrays = []
        for tensor in self.native["inputs"]:
            # as_numpy() of Triton 2.51 reads wrong numbers under NumPy 2
            array = np.from_dlpack(pb_utils.get_input_tensor_by_name(request, tensor["name"]))
            assert array.dtype == NUMPY[tensor["dtype"]]
            arrays.append(array)
        answers = []
        for tensor, found in zip(self.native["outputs"], self.run(arrays), strict=True):
            array = np.ascontiguousarray(found, NUMPY[tensor["dtype"]])
            expected = () if tensor["scalar"] else tuple(tensor["dims"])
            assert array.shape[1:] == expected, (array.shape, expected)
            capsule = write_dlpack(tensor["dtype"], array.shape, array.ctypes.data, array)
            answers.append(pb_utils.Tensor.from_dlpack(tensor["name"], capsule))
        return pb_utils.InferenceResponse(answers)


def forest(folder: Path, native: dict[str, Any]) -> Any:
    """What the FIL backend computes, of src/cpu_forest_model.h."""
    import treelite

    model = treelite.Model.deserialize(str(folder / "checkpoint.tl"))
    parameters = native["parameters"]

    def run(arrays: list[Any]) -> list[Any]:
        scores = treelite.gtil.predict(model, arrays[0]).reshape(len(arrays[0]), -1)
        if parameters["is_classifier"] == "false" or parameters["predict_proba"] == "true":
            return [scores]
        if scores.shape[1] > 1:
            return [scores.argmax(axis=1)[:, None]]
        return [scores > float(parameters["threshold"])]

    return run


def session(folder: Path, native: dict[str, Any]) -> Any:
    """What the ONNX Runtime backend computes."""
    import onnxruntime

    opened = onnxruntime.InferenceSession(str(folder / native["file"]), providers=["CPUExecutionProvider"])

    def run(arrays: list[Any]) -> list[Any]:
        given = {tensor["name"]: array for tensor, array in zip(native["inputs"], arrays, strict=True)}
        return list(opened.run([tensor["name"] for tensor in native["outputs"]], given))

    return run


def module(folder: Path, native: dict[str, Any]) -> Any:
    """What the PyTorch backend computes."""
    import torch

    loaded = torch.jit.load(str(folder / native["file"]))

    def run(arrays: list[Any]) -> list[Any]:
        with torch.inference_mode():
            found = loaded(*(torch.from_numpy(array.copy()) for array in arrays))
        return [each.numpy() for each in (found if isinstance(found, tuple) else (found,))]

    return run
