"""Images, files, forms and streams over HTTP, as clients send them."""

from __future__ import annotations

import io
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest

from adapter.io import JSON, Image, Multipart, Text
from tests.e2e.conftest import Serve, Served
from tests.io.forms import form
from tests.io.test_image import vast_png
from tests.io.wire import read

SERVICES = Path(__file__).parent / "services"


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("descriptors") / "notes"
    path.touch()
    return path


@pytest.fixture(scope="module")
def served(serve: Serve, notes: Path) -> Served:
    return serve("descriptors:svc", "--development", working_dir=SERVICES, env={"NOTES": str(notes)})


def picture(value: int = 7, size: tuple[int, int] = (8, 4), format_: str = "PNG") -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", size, (value, value, value)).save(file, format_)
    return file.getvalue()


def wait_for(notes: Path, line: str, count: int) -> None:
    until = time.monotonic() + 10
    while notes.read_text().count(line) < count:
        assert time.monotonic() < until, f"{line!r} is not in {notes.read_text()!r}"
        time.sleep(0.02)


# ---- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("way", ["body", "typed body", "form"])
def test_image_is_read_however_it_comes(served: Served, format_: str, way: str) -> None:
    data = picture(format_=format_)
    ways: dict[str, dict[str, Any]] = {
        "body": {"content": data},
        "typed body": {"content": data, "headers": {"content-type": f"image/{format_.lower()}"}},
        "form": {"files": {"any": (f"a.{format_.lower()}", data)}},
    }
    answer = served.post("/look", **ways[way]).json()
    assert (answer["size"], answer["mode"]) == ([8, 4], "RGB")
    assert answer["mean"] == pytest.approx(7, abs=2)


def test_image_is_read_from_curl(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(picture())
    for options in (["--data-binary", f"@{path}"], ["-F", f"image=@{path}"], ["-F", f"image=@{path};type=image/png"]):
        command = ["curl", "--silent", "--show-error", *options, f"{served.url}/look"]
        ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        assert ran.stdout == '{"size":[8,4],"mode":"RGB","mean":7.0}'


def test_image_is_sent_with_its_headers(served: Served) -> None:
    answer = served.post("/turn", content=picture())
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-disposition"] == 'attachment; filename="output.png"'
    image = PIL.Image.open(io.BytesIO(answer.content))
    assert (image.size, image.mode) == ((4, 8), "RGBA")


def test_array_is_sent_as_an_image_beside_what_the_context_says(served: Served) -> None:
    answer = served.post("/paint", json=[[0, 128], [255, 1]])
    assert answer.headers["x-painted"] == "yes"
    assert np.asarray(PIL.Image.open(io.BytesIO(answer.content))).tolist() == [[0, 128], [255, 1]]


def test_concurrent_uploads_do_not_mix(served: Served) -> None:
    def upload(value: int) -> tuple[float, list[int]]:
        side = 400 if value % 2 else 20  # decoded on a thread, and at once
        answer = served.post("/look", files={"image": (f"{value}.png", picture(value, (side, side)))}).json()
        return answer["mean"], answer["size"]

    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(upload, range(40)))
    assert answers == [(float(v), [400, 400] if v % 2 else [20, 20]) for v in range(40)]


@pytest.mark.parametrize(
    ("content", "content_type", "status", "message"),
    [
        (b"", "image/png", 400, "There is no image: the body is empty"),
        (b"no image", "image/png", 400, "The 8 bytes are no image; send one of image/jpeg"),
        (picture(size=(64, 64), format_="JPEG")[:-20], "image/jpeg", 400, "damaged or cut off"),
        (vast_png(50_000, 50_000), "image/png", 400, "at most 89478485 are read"),
        (vast_png(9_500, 9_500), "image/png", 400, "The image has 9500 x 9500 pixels"),
        (picture(), "text/plain", 415, "came as 'text/plain'"),
        (picture(), "multipart/form-data", 400, "names no boundary"),
    ],
)
def test_bad_image_is_the_fault_of_its_sender(
    served: Served, content: bytes, content_type: str, status: int, message: str
) -> None:
    answer = served.post("/look", content=content, headers={"content-type": content_type})
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert message in answer.json()["error"]


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 5, 5 << 20])
def test_file_is_read_however_it_comes(served: Served, size: int) -> None:
    data, small = bytes(size), size < 1 << 20
    assert served.post("/weigh", content=data).json() == {
        "name": "<request body>",
        "type": "",
        "size": size,
        "in_memory": small,
    }
    assert served.post("/weigh", files={"file": ("ünï.pdf", data)}).json() == {
        "name": "ünï.pdf",
        "type": "application/pdf",
        "size": size,
        "in_memory": small,
    }


def test_file_is_sent(served: Served) -> None:
    for size in (4, 3 << 20):
        answer = served.post("/print_out", content=str(size))
        assert answer.content == b"%PDF" + bytes(size - 4)
        assert answer.headers["content-type"] == "application/pdf"
        assert answer.headers["content-length"] == str(size)


# ---- forms ----------------------------------------------------------------------------------------------------------

FEATURES = '{"sepal_length": 5, "sepal_width": 3, "petal_length": 5.1, "petal_width": 1.8}'


@pytest.mark.parametrize(
    "options",
    [
        {"files": {"arr": (None, "[[1, 2, 3, 4]]"), "json": (None, FEATURES)}},
        {"files": {"json": ("a.json", FEATURES), "arr": ("b", b"[[1, 2, 3, 4]]")}},
        {"files": {"json": ("a", FEATURES, "application/json"), "arr": ("b", "[[1, 2, 3, 4]]", "text/plain")}},
    ],
)
def test_form_of_seed_002_is_read(served: Served, options: Any) -> None:
    answer = served.post("/multi_part_predict", **options)
    assert (answer.status_code, answer.text) == (200, "[6]")


def test_form_is_read_from_curl(served: Served, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(FEATURES)
    command = ["curl", "--silent", "--show-error", "-F", "arr=[[1,2,3,4]]", "-F", f"json=@{tmp_path / 'a.json'}"]
    ran = subprocess.run(
        [*command, f"{served.url}/multi_part_predict"], capture_output=True, text=True, check=True, timeout=30
    )
    assert ran.stdout == "[6]"


def test_form_is_read_and_sent_with_the_context_beside_it(served: Served) -> None:
    files = {"image": ("a.png", picture()), "file": ("b.txt", b"text")}
    answer = served.post("/both", files=files, data={"note": "grüße"}, headers={"user-agent": "a test"})
    descriptor = Multipart(image=Image(), note=Text(), meta=JSON())
    value = read(descriptor, answer.content, answer.headers["content-type"])
    assert value["image"].getpixel((0, 0)) == (7, 7, 7)
    assert value["note"] == "GRÜSSE"
    assert value["meta"] == {"agent": "a test", "file": "text", "mode": "RGB"}


@pytest.mark.parametrize(
    ("files", "status", "message"),
    [
        ({"arr": (None, "[[1, 2, 3, 4]]")}, 400, "The form lacks the part 'json'"),
        ({"arr": (None, "[[1]]"), "json": (None, FEATURES)}, 400, "In the part 'arr': The body has the shape (1, 1)"),
        (
            {"arr": (None, "[[1, 2, 3, 4]]"), "json": (None, "{}")},
            400,
            "In the part 'json': The body does not fit Iris",
        ),
        ({"x": (None, "1")}, 400, "The form has a part 'x', but its parts are 'arr', 'json'"),
        ({"arr": ("a.png", b"1"), "json": (None, FEATURES)}, 415, "In the part 'arr': The body came as 'image/png'"),
    ],
)
def test_bad_form_is_the_fault_of_its_sender(served: Served, files: Any, status: int, message: str) -> None:
    answer = served.post("/multi_part_predict", files=files)
    assert (answer.status_code, message in answer.json()["error"]) == (status, True), answer.text


def test_body_that_is_no_form_is_the_fault_of_its_sender(served: Served) -> None:
    assert served.post("/multi_part_predict", json=[1]).status_code == 415
    assert served.post("/multi_part_predict", content=b"x").status_code == 400
    body, content_type = form(files={"arr": (None, "[[1, 2, 3, 4]]"), "json": (None, FEATURES)})
    cut = served.post("/multi_part_predict", content=body[:-8], headers={"content-type": content_type})
    assert (cut.status_code, "ends before its closing boundary" in cut.json()["error"]) == (400, True)


# ---- streams --------------------------------------------------------------------------------------------------------


def test_text_is_streamed_with_what_the_context_says(served: Served) -> None:
    answer = served.post(
        "/echo", content="Grüße".encode("latin-1"), headers={"content-type": "text/plain;charset=latin-1"}
    )
    assert (answer.text, answer.headers["x-length"]) == ("Grüße", "5")
    assert answer.headers["transfer-encoding"] == "chunked"
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert served.post("/spell", content="abc").text == "a-b-c-"


def test_events_arrive_one_by_one_and_the_generator_ends_with_its_client(served: Served, notes: Path) -> None:
    closed = notes.read_text().count("count closed")
    with served.client as client, client.stream("POST", "/count", content="100000") as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        lines = answer.iter_lines()
        assert [next(lines) for _ in range(6)] == ["event: number", "data: 0", "", "event: number", "data: 1", ""]
    wait_for(notes, "count closed", closed + 1)
    assert served.post("/count", content="2").text == "event: number\ndata: 0\n\nevent: number\ndata: 1\n\n"
    wait_for(notes, "count closed", closed + 2)


def test_plain_generator_ends_with_its_client(served: Served, notes: Path) -> None:
    closed = notes.read_text().count("tick closed")
    with served.client as client, client.stream("POST", "/tick", content="60") as answer:
        assert next(answer.iter_lines()) == "tick"
    wait_for(notes, "tick closed", closed + 1)


def test_error_of_a_generator_is_a_500_up_to_the_first_piece(served: Served) -> None:
    answer = served.post("/break_off", content="at once")
    assert answer.status_code == 500
    assert "secret" not in answer.text


def test_error_of_a_generator_breaks_the_connection_off_after_the_first_piece(served: Served) -> None:
    # whether the first piece arrives before the end is the network's affair
    with pytest.raises(
        httpx.RemoteProtocolError, match=r"without sending complete message body|incomplete chunked read"
    ):
        served.post("/break_off", content="later")
    served.wait_for(r"KeyError: 'a secret of the server'", 10)


# ---- descriptors of one's own ---------------------------------------------------------------------------------------


def test_descriptor_of_ones_own_is_served(served: Served) -> None:
    answer = served.post("/reverse", content="a;b", headers={"content-type": "text/x-semicolons"})
    assert (answer.text, answer.headers["content-type"]) == ("b;a", "text/x-semicolons; charset=utf-8")
    assert served.post("/reverse", content="a", headers={"content-type": "text/csv"}).status_code == 415
    assert served.post("/reverse").json() == {"error": "The body is empty; send text/x-semicolons."}


def test_body_is_there_for_the_function_as_well(served: Served) -> None:
    assert served.post("/read_twice", content='{"a": 1}').json() == {"value": {"a": 1}, "body": '{"a": 1}'}


def test_document_describes_every_descriptor(served: Served) -> None:
    paths = served.get("/docs.json").json()["paths"]
    assert set(paths["/multi_part_predict"]["post"]["requestBody"]["content"]) == {"multipart/form-data"}
    assert "image/png" in paths["/turn"]["post"]["responses"]["200"]["content"]
    spec = paths["/both"]["post"]["requestBody"]["x-adapter-io-descriptor"]
    assert list(spec["args"]) == ["image", "note", "file"]
