"""The work of the entry of bench_trees in the stub itself: a copy of this is the model.py of an entry."""

from pathlib import Path

import joblib
import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # exists in Triton's stub only

from adapter.triton.dlpack import write_dlpack


class TritonPythonModel:
    """Triton's python backend calls these methods."""

    def initialize(self, args):  # type: ignore[no-untyped-def]  # as such a file is written
        folder = Path(args["model_repository"]).parent / "bench_trees.predict_proba" / "1" / "model"
        self.model = joblib.load(folder / "saved_model.pkl")

    def execute(self, requests):  # type: ignore[no-untyped-def]  # as such a file is written
        # as_numpy() of this stub gives wrong numbers under NumPy 2
        rows = [np.from_dlpack(pb_utils.get_input_tensor_by_name(request, "X")) for request in requests]
        y = self.model.predict_proba(np.concatenate(rows))
        responses, start = [], 0
        for each in rows:
            part = np.ascontiguousarray(y[start : start + len(each)])
            # nor does it know the capsules of NumPy 2
            capsule = write_dlpack("FP64", part.shape, part.ctypes.data, part)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("output_0", capsule)]))
            start += len(each)
        return responses
