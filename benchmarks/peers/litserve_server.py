"""The iris classifier in LitServe: `litserve_server.py <port> sync|async|batched`."""

import sys
from typing import Any

import litserve as ls
import numpy as np
from sklearn import datasets, svm


class Iris(ls.LitAPI):
    """Classifies irises, a row in each request."""

    def setup(self, device: str) -> None:
        iris = datasets.load_iris()
        self.classifier = svm.SVC(gamma="scale").fit(iris.data, iris.target)

    def decode_request(self, request):
        return np.asarray(request[0])

    def predict(self, x: Any) -> Any:
        return self.classifier.predict(np.atleast_2d(x))

    def unbatch(self, output: Any) -> Any:
        return [output[i : i + 1] for i in range(len(output))]

    def encode_response(self, output: Any) -> Any:
        return output.tolist()


class AsyncIris(ls.LitAPI):
    """The same in coroutines."""

    def setup(self, device: str) -> None:
        iris = datasets.load_iris()
        self.classifier = svm.SVC(gamma="scale").fit(iris.data, iris.target)

    async def decode_request(self, request):
        return np.asarray(request)

    async def predict(self, x: Any) -> Any:
        return self.classifier.predict(x)

    async def encode_response(self, output: Any) -> Any:
        return output.tolist()


if __name__ == "__main__":
    port, kind = int(sys.argv[1]), sys.argv[2]
    if kind == "async":
        api = AsyncIris(enable_async=True)
    elif kind == "batched":
        api = Iris(max_batch_size=64, batch_timeout=0.002)
    else:
        api = Iris()
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=port, num_api_servers=1, generate_client_file=False, log_level="warning")
