"""The work of the entry of bench_script in the stub itself: a copy of this is the model.py of an entry."""

from pathlib import Path

import numpy as np
import torch
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # exists in Triton's stub only

from adapter.triton.dlpack import write_dlpack


class TritonPythonModel:
    """Triton's python backend calls these methods."""

    def initialize(self, args):  # type: ignore[no-untyped-def]  # as such a file is written
        folder = Path(args["model_repository"]).parent / "bench_script.__call__" / "1" / "model"
        self.model = torch.jit.load(str(folder / "saved_model.pt")).eval()

    def execute(self, requests):  # type: ignore[no-untyped-def]  # as such a file is written
        # as_numpy() of this stub gives wrong numbers under NumPy 2
        rows = [np.from_dlpack(pb_utils.get_input_tensor_by_name(request, "input")) for request in requests]
        with torch.inference_mode():
            y = self.model(torch.from_numpy(np.concatenate(rows))).numpy()
        responses, start = [], 0
        for each in rows:
            part = np.ascontiguousarray(y[start : start + len(each)])
            # nor does it know the capsules of NumPy 2
            capsule = write_dlpack("FP32", part.shape, part.ctypes.data, part)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("output_0", capsule)]))
            start += len(each)
        return responses
