"""What the signatures of a service's methods become."""

from __future__ import annotations

from typing import Any

import pytest

from adapter.endpoint import Service, path
from adapter.endpoint.service import endpoints_of, stores_assets, volume_environment, volume_path
from adapter.endpoint.types import File
from adapter.exceptions import InvalidArgument


def make(**members: Any) -> Service:
    def infer(self: Any, text: str) -> str:
        return text

    return type("Made", (Service,), {"infer": infer, **members})()  # type: ignore[no-any-return]


class Complete(Service):
    def infer(self, text: str, times: int = 2) -> list[str]:
        return [text] * times

    def second_one(self, number: float) -> float:
        return number

    @path("/own/path")
    def aside(self, flag: bool) -> bool:
        return flag

    @path("/form")
    def infer_form_data(self, file: File, label: str) -> str:
        return label

    def _helper(self, anything):  # type: ignore[no-untyped-def]
        pass


def test_methods_become_endpoints_in_order() -> None:
    found = endpoints_of(Complete())
    assert [(e.method, e.path) for e in found] == [
        ("infer_form_data", "/form"),
        ("infer", "/infer"),
        ("aside", "/own/path"),
        ("second_one", "/second-one"),
    ]
    assert found[0].input is None
    infer = found[1]
    assert infer.input is not None
    assert infer.input(text="a").model_dump() == {"text": "a", "times": 2}
    assert infer.output(output=["a"]).model_dump()["output"] == ["a"]


class Loaded(Complete):
    """What `setup` keeps, and what a property works out of it, is nobody's endpoint."""

    def setup(self) -> None:
        self.encode = "".join  # a method of something else
        self.generate = Complete().second_one

    @property
    def device(self) -> str:
        raise RuntimeError("setup() has not run yet")

    @classmethod
    def register(cls, number: int) -> str:  # a name that every abstract class has by its metaclass
        return cls.__name__

    alias = Complete.second_one


def test_methods_of_the_class_alone_are_endpoints() -> None:
    service = Loaded()
    before = endpoints_of(service)
    assert [(e.method, e.path) for e in before][2:] == [
        ("alias", "/alias"),
        ("aside", "/own/path"),
        ("register", "/register"),
        ("second_one", "/second-one"),
    ]
    service.setup()
    assert [e.method for e in endpoints_of(service)] == [e.method for e in before]


def no_annotation(self, text) -> str:  # type: ignore[no-untyped-def]
    return str(text)


def no_return(self: Any, text: str):  # type: ignore[no-untyped-def]
    return text


def no_argument(self: Any) -> str:
    return ""


def unknown(self: Any, text: Nowhere) -> str:  # type: ignore[name-defined]  # noqa: F821
    return ""


def many(self: Any, *texts: str) -> str:
    return ""


def positional(self: Any, text: str, /) -> str:
    return ""


def many_files(self: Any, *files: File) -> str:
    return ""


def undescribed(self: Any, text: complex | Any) -> slice:
    return slice(0)


def form(self: Any, file: File, count: int) -> str:
    return ""


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"infer": no_annotation}, "says no type for 'text'"),
        ({"other": no_annotation}, "begins with an underscore"),
        ({"infer": no_return}, "does not say what it returns"),
        ({"infer": no_argument}, "takes no argument"),
        ({"infer": unknown}, "annotations of infer.. cannot be read: NameError"),
        ({"infer": many}, r"takes \*texts"),
        ({"infer": positional}, "takes text: .*str.* by position only"),
        ({"infer": undescribed}, "pydantic cannot describe"),
        ({"infer_form_data": form}, "needs a path of its own"),
        ({"infer_form_data": path("/infer")(form)}, "needs a path of its own"),
        ({"infer_form_data": path("/form")(form)}, "'count: .*int' is neither"),
        ({"infer_form_data": path("/form")(no_argument)}, "takes no argument"),
        ({"infer_form_data": path("/form")(many_files)}, r"takes \*files"),
        ({"other": path("/healthcheck")(many)}, "takes"),
        ({"other": path("/infer")(lambda self, text: "")}, "says no type"),
    ],
)
def test_a_signature_that_says_too_little_is_told(members: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        endpoints_of(make(**members))


def test_a_path_is_served_once() -> None:
    def other(self: Any, text: str) -> str:
        return text

    for taken in ("/infer", "/healthcheck", "/docs", "/"):
        with pytest.raises(InvalidArgument, match=r"give other.. another @path"):
            endpoints_of(make(other=path(taken)(other)))
    with pytest.raises(InvalidArgument, match="begins with a slash"):
        path("infer")


def test_assets_are_stored_where_the_method_is_overridden() -> None:
    assert not stores_assets(make())
    assert stores_assets(make(store_assets=lambda self: None))


def test_the_volume_is_named_by_the_environment() -> None:
    assert volume_environment({"ADAPTER_VOLUME_PATH": "/v"}) == {
        "HUGGINGFACE_HUB_CACHE": "/v/huggingface_hub_cache",
        "TORCH_HOME": "/v/torch_home",
    }
    assert volume_environment({})["TORCH_HOME"] == "/adapter/cache/torch_home"
    assert volume_path({"ADAPTER_VOLUME_PATH": "/v"}) == "/v"
    assert volume_path({}) == "/adapter/cache"
