"""An API for every descriptor, each giving back what it got: what the OpenAPI document says is tried on them."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import PIL.Image
from pydantic import BaseModel, Field

import adapter
from adapter.io import (
    JSON,
    File,
    Image,
    IODescriptor,
    Multipart,
    NumpyNdarray,
    PandasDataFrame,
    PandasSeries,
    Text,
)


class Leaf(BaseModel):
    kind: Literal["leaf"]
    size: float = Field(ge=0, lt=1e6)


class Tree(BaseModel):
    kind: Literal["tree"]
    name: str | None = None
    leaves: list[Leaf] = []
    pair: tuple[int, str] = (1, "a")


frame = pd.DataFrame({"a": [1, 2], "b": [0.5, None], "c": ["x", "y"]})

svc = adapter.Service("described")

ECHOES: dict[str, IODescriptor[Any]] = {
    "json": JSON(),
    "json_model": JSON(pydantic_model=Tree),
    "json_list": JSON(pydantic_model=list[Leaf]),
    "json_sample": JSON.from_sample({"a": [1, 2], "b": None}),
    "array": NumpyNdarray(),
    "array_enforced": NumpyNdarray(dtype="float32", shape=(-1, 2), enforce_dtype=True, enforce_shape=True),
    "array_sample": NumpyNdarray.from_sample(np.array([[1, 2], [3, 4]])),
    "array_text": NumpyNdarray(dtype=str),
    "frame": PandasDataFrame(),
    "frame_sample": PandasDataFrame.from_sample(frame),
    "frame_split": PandasDataFrame(orient="split"),
    "frame_csv": PandasDataFrame(default_format="csv"),
    "series": PandasSeries(),
    "series_sample": PandasSeries.from_sample(frame["a"]),
    "text": Text(),
    "text_sample": Text.from_sample("héllo"),
    "image": Image(mime_type="image/png"),
    "file": File(),
    "file_pdf": File(mime_type="application/pdf"),
}


def echo(value: Any) -> Any:
    return value


for name, descriptor in ECHOES.items():
    svc.api(input=descriptor, output=descriptor, name=name)(echo)


@svc.api(input=Text(), output=Text(content_type="text/event-stream"))
async def events(text: str) -> Any:
    return f"data: {len(text)}\n\n"


form = Multipart(
    rows=NumpyNdarray.from_sample([[1.5, 2.5]]),
    tree=JSON.from_sample(Tree(kind="tree", leaves=[Leaf(kind="leaf", size=1)])),
    note=Text.from_sample("a note"),
    table=PandasDataFrame.from_sample(frame),
    document=File(),
)


@svc.api(input=form, output=JSON())
def parts(rows: Any, tree: Tree, note: str, table: pd.DataFrame, document: Any, ctx: adapter.Context) -> Any:
    (Path(ctx.temp_dir) / "document").write_bytes(document.read())
    ctx.response.status_code = 201
    return {"rows": rows.shape, "tree": tree, "note": note, "table": len(table)}


@svc.api(input=Multipart(image=Image(), size=JSON(pydantic_model=int)), output=Multipart(image=Image(), size=JSON()))
def pictures(image: PIL.Image.Image, size: int) -> Any:
    return {"image": image, "size": size}


@svc.api(input=JSON(), output=JSON(), route="/of/{user}/{number:int}/{share:float}/{key:uuid}/{rest:path}")
def path(body: Any, ctx: adapter.Context) -> Any:
    return {name: str(value) for name, value in ctx.request.path_params.items()}
