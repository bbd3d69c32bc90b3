"""Names that people know from BentoML 1.x and adapter does not have, with what to use instead."""

from __future__ import annotations

from collections.abc import Mapping

_BENTO = "a service is not packed: `adapter export` writes the model repository that Triton serves"
_BENTOS = "there are no Bentos, and saved models are under `adapter models` and `adapter.models`"
_CLOUD = "there is no model registry: `adapter models export` and `adapter models import` carry a saved model as a file"
_GRPC = "a service speaks HTTP, and Triton speaks gRPC (KServe v2) for every entry by itself"
_CONFIG = "settings stand in adapter.yaml, and `adapter config show` prints them"
_LIBRARY = "save the model with adapter.picklable_model where it can be pickled, or load it in an adapter.Runnable"
_DEPLOYMENT = "Triton and Kubernetes scale a service; `adapter serve --triton` is a front of it"
_PROCESSES = "`adapter serve` starts its processes by itself, and `adapter serve --triton` is a front alone"

# attribute of the package -> the way out
ATTRIBUTES: Mapping[str, str] = {
    **dict.fromkeys(("Bento", "bentos", "build", "container"), _BENTO),
    **dict.fromkeys(("list", "get", "delete", "import_bento", "export_bento"), _BENTOS),
    **dict.fromkeys(("push", "pull", "cloud", "yatai"), _CLOUD),
    **dict.fromkeys(("GrpcServer", "grpc"), _GRPC),
    "Resource": "`custom_resources` of a runner reach its `strategy`, an adapter.Strategy, as they are written",
    **dict.fromkeys(("load_config", "save_config"), _CONFIG),
    **dict.fromkeys(("monitor", "monitoring"), "log in the API function, or count with adapter.metrics"),
    "serve": "run `adapter serve`, or `adapter.HTTPServer(…).start()` in a program",
    "batch": "call `runner.init_local()` in the job, and the methods of the runner then",
    "ray": "`svc.asgi_app` is the service as an ASGI application, which Ray Serve takes",
    "set_serialization_strategy": "`adapter export` finds out what of your code goes with a Runnable",
    "diffusers_simple": "adapter.diffusers saves a pipeline, and its runner takes the prompt",
    "detectron": _LIBRARY,
}

# command -> the way out
COMMANDS: Mapping[str, str] = {
    **dict.fromkeys(("build", "containerize"), _BENTO),
    **dict.fromkeys(("list", "get", "delete", "import"), _BENTOS),
    **dict.fromkeys(("push", "pull", "cloud", "yatai"), _CLOUD),
    **dict.fromkeys(("serve-grpc", "start-grpc-server"), _GRPC),
    **dict.fromkeys(("start-http-server", "start-runner-server"), _PROCESSES),
    "deployment": _DEPLOYMENT,
    "env": "`adapter engine info` tells which Triton is used, and `pip freeze` the rest",
}


def attribute(name: str) -> str:
    """The message for an attribute that the package lacks."""
    if name in ATTRIBUTES:
        return f"adapter has no {name!r}; {ATTRIBUTES[name]}."
    return f"module 'adapter' has no attribute {name!r}"
