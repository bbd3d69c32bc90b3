"""The work of `benchmarks.services.doubling` in the stub itself: a copy of this is the model.py of an entry."""

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # exists in Triton's stub only


class TritonPythonModel:
    """Triton's python backend calls these methods."""

    def execute(self, requests):  # type: ignore[no-untyped-def]  # as such a file is written
        responses = []
        for request in requests:
            # as_numpy() of this stub gives wrong numbers under NumPy 2
            x = np.from_dlpack(pb_utils.get_input_tensor_by_name(request, "x"))
            y = pb_utils.Tensor.from_dlpack("output_0", x * np.float32(2))
            responses.append(pb_utils.InferenceResponse([y]))
        return responses
