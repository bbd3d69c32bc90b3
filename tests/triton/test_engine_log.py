from __future__ import annotations

import logging

import pytest

from adapter.triton.engine_log import ENGINE, RUNNER, LogLine, parse_line

STAMP = "1121 08:37:21.964773 4738"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            f'I{STAMP} model_lifecycle.cc:472] "loading: good:1"\n',
            LogLine(logging.DEBUG, ENGINE, "loading: good:1", "model_lifecycle.cc"),
        ),
        (
            f'W{STAMP} server.cc:1] "slow\\n  \\"disk\\"\\n"',
            LogLine(logging.WARNING, ENGINE, 'slow\n  "disk"', "server.cc"),
        ),
        (f'E{STAMP} main.cc:245] "failed to start"', LogLine(logging.ERROR, ENGINE, "failed to start", "main.cc")),
        (f"F{STAMP} a.cc:1] raw text", LogLine(logging.CRITICAL, ENGINE, "raw text", "a.cc", "text")),
        (
            "E1121 08:41:35.903040478    5383 chttp2_server.cc:1060]      UNKNOWN:No address added",
            LogLine(logging.ERROR, ENGINE, "UNKNOWN:No address added", "chttp2_server.cc", "text"),
        ),
        (f"I{STAMP} server.cc:604] ", LogLine(logging.DEBUG, ENGINE, "", "server.cc", "table")),
        (f'I{STAMP} model.py:7] "from a model"', LogLine(logging.INFO, RUNNER, "from a model", "model.py")),
        (f'W{STAMP} backend.py:7] "from a model"', LogLine(logging.WARNING, RUNNER, "from a model", "backend.py")),
        ("| print(table) |", LogLine(logging.INFO, RUNNER, "| print(table) |")),
        ("hello", LogLine(logging.INFO, RUNNER, "hello")),
        ("", LogLine(logging.DEBUG, ENGINE, "")),
        ("Signal (15) received.", LogLine(logging.DEBUG, ENGINE, "Signal (15) received.")),
        (
            "[ERROR] [adapter.runner] request 7 to echo failed:",
            LogLine(logging.ERROR, RUNNER, "request 7 to echo failed:", block="log"),
        ),
        ("[WARNING] [root] careful", LogLine(logging.WARNING, RUNNER, "careful", block="log")),
        ("[INFO] [my.code] NVML is here", LogLine(logging.INFO, RUNNER, "[my.code] NVML is here", block="log")),
        ("[DEBUG] [adapter.store]", LogLine(logging.DEBUG, RUNNER, "", block="log")),
        ("[ERROR] printed", LogLine(logging.INFO, RUNNER, "[ERROR] printed")),
        ("[x] [y] printed", LogLine(logging.INFO, RUNNER, "[x] [y] printed")),
        (
            "Failed to run python backend stub. Errno = 2",
            LogLine(logging.ERROR, ENGINE, "Failed to run python backend stub. Errno = 2", block="log"),
        ),
        (
            "terminate called after throwing an instance of 'std::bad_alloc'",
            LogLine(
                logging.ERROR, RUNNER, "terminate called after throwing an instance of 'std::bad_alloc'", block="log"
            ),
        ),
        (
            '{"time": "t", "level": "ERROR", "component": "runner", "logger": "adapter.runner", "request_id": "7", '
            '"message": "it\\nfailed", "entry": "a.b", "exception": "Trace"}',
            LogLine(logging.ERROR, RUNNER, "it\nfailed", entry="a.b", request_id="7", exception="Trace"),
        ),
        (
            '{"time": "t", "level": "INFO", "component": "runner", "logger": "my.code", "message": "hi", "entry": "a"}',
            LogLine(logging.INFO, RUNNER, "hi", entry="a", origin="my.code"),
        ),
        (
            "[libprotobuf ERROR /a/text_format.cc:337] Error parsing text-format: 1:7",
            LogLine(logging.ERROR, ENGINE, "Error parsing text-format: 1:7"),
        ),
    ],
)
def test_parse_line(line: str, expected: LogLine) -> None:
    assert parse_line(line) == expected


@pytest.mark.parametrize(
    "line",
    [
        f'W{STAMP} pinned_memory_manager.cc:273] "Unable to allocate pinned system memory, pinned memory pool will '
        'not be available: CUDA driver version is insufficient for CUDA runtime version"',
        f'E{STAMP} server.cc:241] "CudaDriverHelper has not been initialized."',
        f'W{STAMP} metrics.cc:1] "Error: Failed to initialize NVML"',
        f'W{STAMP} metrics.cc:1] "DCGM unable to start"',
        f'E{STAMP} backend_model.cc:692] "ERROR: Failed to create instance: RuntimeError: no"',
    ],
)
def test_parse_line_when_it_is_noise(line: str) -> None:
    assert parse_line(line).level == logging.DEBUG


def _read(text: str) -> list[tuple[int, str, str]]:
    read: list[LogLine] = []
    for line in text.splitlines():
        read.append(parse_line(line, before=read[-1] if read else None))
    return [(line.level, line.logger, line.text) for line in read if line.text]


def test_parse_line_when_in_a_table() -> None:
    table = f"I{STAMP} server.cc:604] \n+---+\n| a |\n+---+\n\n| printed |\n"
    assert _read(table) == [
        (logging.DEBUG, ENGINE, "+---+"),
        (logging.DEBUG, ENGINE, "| a |"),
        (logging.DEBUG, ENGINE, "+---+"),
        (logging.INFO, RUNNER, "| printed |"),
    ]
    assert _read(f'I{STAMP} server.cc:604] \nW{STAMP} a.cc:1] "x"\n') == [(logging.WARNING, ENGINE, "x")]


def test_parse_line_when_text_is_raw() -> None:
    text = (
        f"E{STAMP} pb_stub.cc:366] Stub failed: ModuleNotFoundError: No module named 'a'\n"
        "\nAt:\n  model.py(3): <module>\n"
        "printed\n"
    )
    assert _read(text) == [
        (logging.ERROR, ENGINE, "Stub failed: ModuleNotFoundError: No module named 'a'"),
        (logging.ERROR, ENGINE, "At:"),
        (logging.ERROR, ENGINE, "  model.py(3): <module>"),
        (logging.INFO, RUNNER, "printed"),
    ]


def test_parse_line_when_a_worker_logs_an_error() -> None:
    error = """\
[ERROR] [adapter.runner] request 7 to echo failed:
Traceback (most recent call last):
  File "code/service.py", line 3, in predict
    raise KeyError("a")
KeyError: 'a'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "code/service.py", line 5, in predict
    raise OutOfPaper
service.OutOfPaper
"""
    read = _read(f"{error}printed: next\n[INFO] [adapter.runner] well again\nValueErrors\n")
    assert [text for _, _, text in read[:10]] == [
        line.removeprefix("[ERROR] [adapter.runner] ") for line in error.splitlines() if line
    ]
    assert {(level, name) for level, name, _ in read[:10]} == {(logging.ERROR, RUNNER)}
    assert read[10:] == [
        (logging.INFO, RUNNER, "printed: next"),
        (logging.INFO, RUNNER, "well again"),
        (logging.INFO, RUNNER, "ValueErrors"),
    ]


def test_parse_line_when_an_error_has_no_frames() -> None:
    assert _read("[ERROR] [adapter.runner] it failed:\nValueError: no\nValueError: printed later\n")[:2] == [
        (logging.ERROR, RUNNER, "it failed:"),
        (logging.ERROR, RUNNER, "ValueError: no"),
    ]


def test_parse_line_when_a_stub_aborts() -> None:
    assert _read("terminate called after throwing an instance of 'std::x'\n  what():  stol\nprinted\n") == [
        (logging.ERROR, RUNNER, "terminate called after throwing an instance of 'std::x'"),
        (logging.ERROR, RUNNER, "  what():  stol"),
        (logging.INFO, RUNNER, "printed"),
    ]


def test_log_line_tells_a_record_what_it_knows() -> None:
    line = LogLine(logging.ERROR, RUNNER, "it failed", entry="a.b", request_id="7", exception="Trace", origin="my.code")
    assert line.extra == {
        "component": "runner",
        "entry": "a.b",
        "request_id": "7",
        "exception": "Trace",
        "origin": "my.code",
    }
    assert line.whole == "it failed\nTrace"
    assert LogLine(logging.WARNING, ENGINE, "slow").extra == {"component": "engine"}
