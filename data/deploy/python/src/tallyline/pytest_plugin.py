"""The fixture `tallyline`, which pytest finds when the package is installed."""

import pytest

from tallyline import Server


@pytest.fixture
def tallyline(tmp_path_factory):
    """A server for this test, on a free port and with a data directory of its own."""
    with Server(tmp_path_factory.mktemp("tallyline") / "data") as server:
        yield server
