from __future__ import annotations

import inspect
import pickle
from typing import Any

import cloudpickle
import numpy as np
import pytest
from pydantic import BaseModel

from adapter.context import Context
from adapter.exceptions import AlreadyExists, InvalidArgument, StateException
from adapter.io import JSON, Multipart, NumpyNdarray, Text
from adapter.model import Model, ModelInfo
from adapter.runnable import Runnable
from adapter.runner import Runner
from adapter.services import RESERVED, Mount, Service
from adapter.tag import Tag


class Echo(Runnable):
    @Runnable.method
    def echo(self, x: Any) -> Any:
        return x


class Point(BaseModel):
    x: float


class MyContext(Context):
    pass


def model(name: str, version: str) -> Model:
    return Model(ModelInfo(Tag(name, version), "adapter.sklearn"), None)


def runner_of(saved: Model, name: str = "") -> Runner:
    return Runner(Echo, name=name or saved.tag.name, models=[saved], model=saved)


# ---- services -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [("iris", "iris"), ("Iris_2.x", "iris_2.x"), ("service", "service"), ("__main__", "main"), ("_private", "private")],
)
def test_service_has_its_name_in_lower_case(name: str, expected: str) -> None:
    assert Service(name).name == expected


@pytest.mark.parametrize("name", ["", "a b", "-a", "__a b__", "a/b", "x" * 64, None, 5])
def test_service_name_that_cannot_be_used_is_refused(name: Any) -> None:
    with pytest.raises(InvalidArgument, match="service name"):
        Service(name)


def test_service_name_of_underscores_is_refused_as_it_was_given() -> None:
    with pytest.raises(InvalidArgument, match="'__' cannot be a service name"):
        Service("__")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runners": [Echo]}, r"holds runners, not .*: write `model\.to_runner\(\)` or"),
        ({"runners": [model("m", "v1")]}, "holds runners, not Model"),
        ({"models": ["iris:latest"]}, "holds saved models, not 'iris:latest'"),
    ],
)
def test_service_of_something_else_is_refused(options: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        Service("s", **options)


def test_service_says_what_it_is() -> None:
    svc = Service("s", runners=[Runner(Echo)], models=[model("m", "v1")])
    assert repr(svc) == 'adapter.Service(name="s", runners=[echo])'
    assert [m.tag.name for m in svc.models] == ["m"]
    svc.import_string = "service:svc"
    assert repr(svc) == 'adapter.Service(name="s", import_str="service:svc")'
    svc.working_dir = "/srv/iris"
    assert str(svc) == 'adapter.Service(name="s", import_str="service:svc", working_dir="/srv/iris")'


def test_two_versions_of_one_model_get_names_with_their_versions() -> None:
    first, second, other = runner_of(model("m", "v1")), runner_of(model("m", "v2")), runner_of(model("n", "v1"))
    svc = Service("s", runners=[first, second, other])
    assert [r.name for r in svc.runners] == ["m_v1", "m_v2", "n"]
    assert (first.spec.name, repr(second)) == ("m_v1", "Runner('m_v2', methods=[echo])")


@pytest.mark.parametrize(
    "runners",
    [
        [Runner(Echo), Runner(Echo)],
        [runner_of(model("m", "v1")), runner_of(model("m", "v1"))],
        [runner_of(model("echo", "v1")), Runner(Echo)],
        [*[Runner(Echo)] * 2],
    ],
)
def test_two_runners_of_one_name_are_refused(runners: list[Runner]) -> None:
    with pytest.raises(AlreadyExists, match=r"Two runners of the service are called '\w+': give one another `name=`"):
        Service("s", runners=runners)


def test_one_class_makes_runners_of_several_names() -> None:
    svc = Service("s", runners=[Runner(Echo, name="one"), Runner(Echo, name="two")])
    assert [r.name for r in svc.runners] == ["one", "two"]


# ---- APIs -----------------------------------------------------------------------------------------------------------


def test_api_is_recorded_and_its_function_stays_as_it_is() -> None:
    svc, numbers, answer = Service("s"), NumpyNdarray(), JSON()

    @svc.api(input=numbers, output=answer)
    def classify(x: Any) -> Any:
        """Say what it is."""
        return x

    assert classify(5) == 5
    api = svc.apis["classify"]
    assert (api.name, api.route, api.doc) == ("classify", "/classify", "Say what it is.")
    assert api.input is numbers
    assert api.output is answer
    assert api.func is classify
    assert (api.is_async, api.needs_ctx) == (False, False)
    assert svc.doc == "classify: Say what it is."


def test_api_function_is_called_with_local_runners_as_seed_001_shows() -> None:
    runner = Runner(Echo)
    svc = Service("s", runners=[runner])

    @svc.api(input=NumpyNdarray(), output=NumpyNdarray())
    def classify(x: Any) -> Any:
        return runner.echo.run(x) + 1

    for each in svc.runners:
        each.init_local(quiet=True)
    assert svc.apis["classify"].func(np.arange(2)).tolist() == [1, 2]
    for each in svc.runners:
        each.destroy()


def test_api_takes_name_doc_and_route() -> None:
    svc = Service("s")

    @svc.api(JSON(), JSON(), name="other", doc="Text.", route="/v2/models/m/infer")
    async def classify(x: Any) -> Any:
        """Not this."""

    api = svc.apis["other"]
    assert (api.name, api.route, api.doc, api.is_async) == ("other", "/v2/models/m/infer", "Text.", True)


@pytest.mark.parametrize(("route", "expected"), [("a", "/a"), ("/a/b", "/a/b"), ("a-b/c.d", "/a-b/c.d"), (None, "/f")])
def test_route_begins_with_a_slash(route: str | None, expected: str) -> None:
    svc = Service("s")

    @svc.api(JSON(), JSON(), route=route)
    def f(x: Any) -> Any: ...

    assert svc.apis["f"].route == expected


@pytest.mark.parametrize(
    "route", ["", "/", "//a", "/:a", "/a?b", "/a#b", "/a b", "/a\nb", "/a%20b", "/a\\b", "\0", 5, b"/a", ["/a"]]
)
def test_route_that_is_no_path_is_refused(route: Any) -> None:
    with pytest.raises(InvalidArgument, match="cannot be a route: write a path"):
        Service("s").api(JSON(), JSON(), route=route)(lambda_named("f"))


@pytest.mark.parametrize(
    ("route", "message"),
    [
        ("/a/{b", r"write a parameter as in '/users/\{user\}/score'"),
        ("/a/b}", "write a parameter"),
        ("/a/{}", "write a parameter"),
        ("/a/{b-c}", "write a parameter"),
        ("/a/{b:}", "write a parameter"),
        ("/a/{b:integer}", "'integer' is no kind of parameter; there are str, path, int, float, uuid"),
        ("/a/{b}/{b:int}", "it has two parameters called 'b'"),
    ],
)
def test_route_whose_parameters_cannot_be_read_is_refused(route: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        Service("s").api(JSON(), JSON(), route=route)(lambda_named("f"))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("/a/{b}", "/a/{c}"),
        ("/a/{b}", "/a/{b:int}"),
        ("/a/{b:int}", "/a/{b}"),  # OpenAPI takes these two for one
        ("/a/{rest:path}", "/a/{b}/c"),
        ("/{rest:path}", "/{a}"),
        ("/{a}/{b}", "/x/{b}"),
        ("/{a}/x/{b}", "/y/x/{b:uuid}"),
    ],
)
def test_route_that_would_never_be_reached_is_refused(first: str, second: str) -> None:
    svc = Service("s")
    svc.api(JSON(), JSON(), route=first)(lambda_named("f"))
    with pytest.raises(AlreadyExists, match=r"would never be reached: '.*' of the API 'f' takes the same paths"):
        svc.api(JSON(), JSON(), route=second)(lambda_named("g"))
    assert list(svc.apis) == ["f"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("/a/{b}", "/a/b"),
        ("/a/b", "/a/{b}"),
        ("/a/{b}", "/a/{b}/c"),
        ("/x/{b}", "/{a}/{b}"),
        ("/{a}/x", "/y/{b}"),
        ("/a/{b}/c", "/a/{rest:path}"),
        ("/a/1/{b}", "/a/{n:int}/{b}"),
        ("/{a}-x", "/{a}-y"),
    ],
)
def test_routes_that_each_have_paths_of_their_own_stand_together(first: str, second: str) -> None:
    svc = Service("s")
    svc.api(JSON(), JSON(), route=first)(lambda_named("f"))
    svc.api(JSON(), JSON(), route=second)(lambda_named("g"))
    assert [api.route for api in svc.apis.values()] == [first, second]


def lambda_named(name: str) -> Any:
    def function(x: Any) -> Any: ...

    function.__name__ = name
    return function


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_name_and_route_of_the_server_itself_are_refused(name: str) -> None:
    svc = Service("s")
    with pytest.raises(InvalidArgument, match="the server uses it"):
        svc.api(JSON(), JSON())(lambda_named(name))
    with pytest.raises(InvalidArgument, match="the server uses it"):
        svc.api(JSON(), JSON(), route=f"/{name}")(lambda_named("f"))
    with pytest.raises(InvalidArgument, match="the server uses it"):
        svc.api(JSON(), JSON(), route=f"/{name}/more")(lambda_named("f"))
    with pytest.raises(InvalidArgument, match="the server uses it"):
        svc.api(JSON(), JSON(), route="/docs.json")(lambda_named("f"))
    assert not svc.apis


def test_name_and_route_are_taken_once() -> None:
    svc = Service("s")
    svc.api(JSON(), JSON())(lambda_named("f"))
    with pytest.raises(AlreadyExists, match="has an API 'f' already"):
        svc.api(JSON(), JSON())(lambda_named("f"))
    with pytest.raises(AlreadyExists, match="'/f' belongs to the API 'f'"):
        svc.api(JSON(), JSON(), name="g", route="/f")(lambda_named("f"))
    assert list(svc.apis) == ["f"]


@pytest.mark.parametrize("name", ["<lambda>", "a-b", "1a", ""])
def test_name_that_is_no_identifier_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match="cannot be the name of an API"):
        Service("s").api(JSON(), JSON())(lambda_named(name))


@pytest.mark.parametrize("arguments", [(JSON, JSON()), (JSON(), "json"), (None, JSON())])
def test_descriptor_that_is_none_is_refused(arguments: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"is not an IO descriptor: write for example \w+=adapter\.io\.JSON\(\)"):
        Service("s").api(*arguments)


# ---- what an API function takes -------------------------------------------------------------------------------------


def bare(x, anything):  # type: ignore[no-untyped-def]  # as people write it
    return x


def annotated(x: np.ndarray[Any, Any], ctx: Context) -> Any:
    return x


def subclass(x: Any, ctx: MyContext) -> Any:
    return x


def anything(x: Any, anything: Any) -> Any:
    return x


def unreadable(x: Unknown, ctx: Missing) -> Any:  # type: ignore[name-defined]  # noqa: F821  # what is tested
    return x


def alone(x: Any, *more: Any, **named: Any) -> Any:
    return x


@pytest.mark.parametrize(
    ("function", "parameter"),
    [
        (bare, "anything"),
        (annotated, "ctx"),
        (anything, "anything"),
        (subclass, "ctx"),
        (unreadable, "ctx"),
        (alone, None),
    ],
)
def test_second_parameter_is_the_context(function: Any, parameter: str | None) -> None:
    svc = Service("s")
    svc.api(NumpyNdarray(), JSON())(function)
    assert svc.apis[function.__name__].ctx_param == parameter


def nothing() -> Any: ...


def stars(*x: Any) -> Any: ...


def three(x: Any, y: Any, z: Any) -> Any: ...


def wrong(x: str) -> Any: ...


def wrong_model(x: Point) -> Any: ...


def no_context(x: Any, y: int) -> Any: ...


def keyword(x: Any, *, ctx: Context) -> Any: ...


def keyword_body(*, x: Any) -> Any: ...


def keyword_option(x: Any, ctx: Context, *, fast: bool = True) -> Any: ...


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            keyword,
            r"keyword\(\) takes 'ctx' by keyword only, but the body .* by position: leave out the `\*` before it",
        ),
        (keyword_body, r"keyword_body\(\) takes 'x' by keyword only"),
        (keyword_option, r"keyword_option\(\) takes 'fast' by keyword only"),
        (nothing, r"nothing\(\) takes no argument: its first one is the body of the request"),
        (stars, r"stars\(\) takes no argument"),
        (three, r"three\(\) takes 3 arguments: there are the body of the request and, if wanted, the Context"),
        (wrong, r"wrong\(\) takes str, but its input NumpyNdarray makes ndarray of a request"),
        (wrong_model, r"wrong_model\(\) takes Point, but its input NumpyNdarray"),
        (no_context, r"second parameter of no_context\(\) is the Context, so 'y' cannot be int"),
    ],
)
def test_function_that_cannot_be_an_api_is_refused(function: Any, message: str) -> None:
    svc = Service("s")
    with pytest.raises(InvalidArgument, match=message):
        svc.api(NumpyNdarray(), JSON())(function)
    assert not svc.apis


def test_body_may_be_annotated_more_or_less_exactly_than_its_descriptor() -> None:
    svc = Service("s")

    @svc.api(Text(), JSON())
    def exact(x: str) -> Any: ...

    @svc.api(JSON(), JSON())
    def any_json(x: dict[str, Any]) -> Any: ...

    @svc.api(JSON(pydantic_model=Point), JSON())
    def parsed(x: Point) -> Any: ...

    assert list(svc.apis) == ["exact", "any_json", "parsed"]


# ---- beside the APIs ------------------------------------------------------------------------------------------------


async def asgi(scope: Any, receive: Any, send: Any) -> None: ...


def wsgi(environ: Any, start_response: Any) -> Any: ...


class Middleware:
    def __init__(self, app: Any, limit: int = 0) -> None: ...

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


def test_mounts_are_kept_with_the_longest_path_first() -> None:
    svc = Service("s")
    svc.mount_asgi_app(asgi)
    svc.mount_asgi_app(asgi, path="v1/", name="first")
    svc.mount_asgi_app(asgi, "/v1/admin")
    assert svc.mounts == [Mount("/v1/admin", asgi), Mount("/v1", asgi, "first"), Mount("/", asgi)]


def test_wsgi_application_is_mounted_as_an_asgi_one() -> None:
    svc = Service("s")
    svc.mount_wsgi_app(wsgi, path="/old")
    assert [(mount.path, inspect.iscoroutinefunction(type(mount.app).__call__)) for mount in svc.mounts] == [
        ("/old", True)
    ]


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("/livez", InvalidArgument, "'/livez' cannot be the path of a mounted application: the server uses it"),
        ("/static_content/x", InvalidArgument, "the server uses it"),
        ("/metrics/", InvalidArgument, "the server uses it"),
        ("docs.json", InvalidArgument, "the server uses it"),
        ("/a/{b}", InvalidArgument, "it has parameters"),
        ("//a", InvalidArgument, "write a path"),
        (None, InvalidArgument, "write a path"),
        ("/taken/", AlreadyExists, "Another application is mounted at '/taken' already"),
    ],
)
def test_mount_is_refused_where_it_cannot_be(path: Any, error: type[Exception], message: str) -> None:
    svc = Service("s")
    svc.mount_asgi_app(asgi, "/taken")
    with pytest.raises(error, match=message):
        svc.mount_asgi_app(asgi, path)
    assert len(svc.mounts) == 1


def test_mount_of_something_else_is_refused() -> None:
    svc = Service("s")
    with pytest.raises(InvalidArgument, match="takes two arguments as a WSGI application does: use mount_wsgi_app"):
        svc.mount_asgi_app(wsgi)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(InvalidArgument, match="takes three arguments as an ASGI application does: use mount_asgi_app"):
        svc.mount_wsgi_app(asgi)  # type: ignore[arg-type]  # what is tested
    for mount in (svc.mount_asgi_app, svc.mount_wsgi_app):
        with pytest.raises(InvalidArgument, match="'app' cannot be mounted: it is not an application"):
            mount("app")  # type: ignore[arg-type]  # what is tested
    assert not svc.mounts


def test_middlewares_are_kept_in_order_with_their_options() -> None:
    svc = Service("s")
    svc.add_asgi_middleware(Middleware, limit=5)
    svc.add_asgi_middleware(Middleware)
    assert svc.middlewares == [(Middleware, {"limit": 5}), (Middleware, {})]
    with pytest.raises(InvalidArgument, match="'gzip' is not a middleware: give its class"):
        svc.add_asgi_middleware("gzip")  # type: ignore[arg-type]  # what is tested


# ---- what an API function takes of a form ---------------------------------------------------------------------------


def in_order(arr: np.ndarray[Any, Any], json: dict[str, Any]) -> Any: ...


def swapped(json: Point, arr: Any) -> Any: ...


def with_ctx(arr: Any, json: Any, ctx: Any) -> Any: ...


def with_context_first(context: Any, arr: Any, json: Any) -> Any: ...


def with_annotated(arr: Any, request: MyContext, json: Any) -> Any: ...


def by_keyword(*, json: Any, arr: Any, ctx: Context) -> Any: ...


def any_part(**values: Any) -> Any: ...


@pytest.mark.parametrize(
    ("function", "parameter"),
    [
        (in_order, None),
        (swapped, None),
        (with_ctx, "ctx"),
        (with_context_first, "context"),
        (with_annotated, "request"),
        (by_keyword, "ctx"),
        (any_part, None),
    ],
)
def test_function_takes_the_parts_of_a_form_by_name(function: Any, parameter: str | None) -> None:
    svc = Service("s")
    svc.api(Multipart(arr=NumpyNdarray(), json=JSON(pydantic_model=Point)), Multipart(x=JSON()))(function)
    api = svc.apis[function.__name__]
    assert (api.multi_input, api.ctx_param) == (True, parameter)


def test_part_may_be_called_like_the_context() -> None:
    svc = Service("s")

    @svc.api(Multipart(ctx=JSON(), context=JSON()), JSON())
    def f(ctx: Any, context: Any, request: Context) -> Any: ...

    assert svc.apis["f"].ctx_param == "request"


def test_api_of_one_input_takes_it_by_position() -> None:
    svc = Service("s")
    svc.api(JSON(), Multipart(x=JSON()))(bare)
    assert svc.apis["bare"].multi_input is False


def one_part(arr: Any) -> Any: ...


def extra(arr: Any, json: Any, other: Any) -> Any: ...


def extra_default(arr: Any, json: Any, fast: bool = True) -> Any: ...


def ctx_of_another_type(arr: Any, json: Any, ctx: int) -> Any: ...


def two_contexts(arr: Any, json: Any, ctx: Any, context: Any) -> Any: ...


def by_position(arr: Any, /, json: Any) -> Any: ...


def wrong_part(arr: str, json: Any) -> Any: ...


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (one_part, r"one_part\(\) does not take the part 'json': .* called like the parts, 'arr', 'json', and"),
        (nothing, r"nothing\(\) does not take the part 'arr'"),
        (extra, r"extra\(\) takes 'other', which is none of the parts 'arr', 'json'; the Context is called `ctx` or"),
        (extra_default, r"takes 'fast', which is none of the parts"),
        (ctx_of_another_type, r"takes 'ctx', which is none of the parts"),
        (two_contexts, r"takes 'context', which is none of the parts 'arr', 'json', and its Context is 'ctx'"),
        (by_position, r"takes 'arr' by position only, but the parts come by keyword: leave out the `/` after it"),
        (wrong_part, r"takes str, but its input NumpyNdarray makes ndarray of the part 'arr'"),
    ],
)
def test_function_that_cannot_take_the_parts_of_a_form_is_refused(function: Any, message: str) -> None:
    svc = Service("s")
    with pytest.raises(InvalidArgument, match=message):
        svc.api(Multipart(arr=NumpyNdarray(), json=JSON()), JSON())(function)
    assert not svc.apis


# ---- hooks ----------------------------------------------------------------------------------------------------------


def test_hooks_are_kept_in_order_and_stay_functions() -> None:
    svc = Service("s")

    @svc.on_startup
    async def connect(context: Context) -> None: ...

    @svc.on_startup
    def warm(context: Context) -> None: ...

    @svc.on_shutdown
    def close(context: Context) -> None: ...

    @svc.on_deployment
    def download() -> str:
        return "done"

    assert svc.startup_hooks == [connect, warm]
    assert svc.shutdown_hooks == [close]
    assert svc.deployment_hooks == [download]
    assert download() == "done"


# ---- what stays here ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Service("s"), "The service 's' is used inside a Runnable, and cannot go with it into Triton"),
        (Runner(Echo), "The runner 'echo' is used inside a Runnable, and cannot go with it into Triton"),
    ],
    ids=["service", "runner"],
)
def test_service_and_runner_inside_a_runnable_refuse_to_travel(dumps: Any, value: Any, message: str) -> None:
    with pytest.raises(StateException, match=message):
        dumps(value)
