from __future__ import annotations

import pytest

from adapter.resources import Machine
from adapter.server.launch import ServeOptions
from adapter.settings import ApiServer, Settings


@pytest.mark.parametrize(
    ("cpus", "beside_triton", "fronts"), [(1, True, 1), (2, True, 1), (3, True, 1), (16, True, 8), (16, False, 16)]
)
def test_triton_has_half_of_the_cpus_where_it_runs_beside_the_fronts(
    cpus: int, beside_triton: bool, fronts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Machine, "here", lambda: Machine(cpus, 0))
    assert ServeOptions("service:svc").fronts(beside_triton=beside_triton) == fronts
    seven = Settings(api_server=ApiServer(workers=7))
    assert ServeOptions("service:svc", settings=seven).fronts(beside_triton=beside_triton) == 7
    assert ServeOptions("service:svc", reload=True).fronts(beside_triton=beside_triton) == 1
    assert ServeOptions("service:svc", settings=seven, development=True).fronts(beside_triton=beside_triton) == 1
