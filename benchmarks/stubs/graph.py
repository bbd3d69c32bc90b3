"""The work of the entry of bench_graph in the stub itself: a copy of this is the model.py of an entry."""

from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # exists in Triton's stub only

from adapter.triton.dlpack import write_dlpack


class TritonPythonModel:
    """Triton's python backend calls these methods."""

    def initialize(self, args):  # type: ignore[no-untyped-def]  # as such a file is written
        folder = Path(args["model_repository"]).parent / "bench_graph.run" / "1" / "model"
        file = str(folder / "saved_model.onnx")
        self.session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def execute(self, requests):  # type: ignore[no-untyped-def]  # as such a file is written
        # as_numpy() of this stub gives wrong numbers under NumPy 2
        rows = [np.from_dlpack(pb_utils.get_input_tensor_by_name(request, "x0")) for request in requests]
        y = self.session.run(None, {"x0": np.concatenate(rows)})[0]
        responses, start = [], 0
        for each in rows:
            part = np.ascontiguousarray(y[start : start + len(each)])
            # nor does it know the capsules of NumPy 2
            capsule = write_dlpack("FP32", part.shape, part.ctypes.data, part)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("output_0", capsule)]))
            start += len(each)
        return responses
