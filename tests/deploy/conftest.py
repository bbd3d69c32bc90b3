"""What tests of the chart share."""

from __future__ import annotations

import pytest

from tests.deploy.chart import Helm, find_helm


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    return find_helm(tmp_path_factory.mktemp("helm"))
