"""Pictures that have an address only fill in by themselves, each in its place."""

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser


@pytest.fixture
def elsewhere(addresses_only, serve, tiny_pipeline_dir, tmp_path):
    """Address of a dashboard on a training set that has addresses only."""
    settings = {
        "VERBATIM_MODEL": str(tiny_pipeline_dir),
        "VERBATIM_DATA_DIR": str(tmp_path / "data"),
        "OMP_NUM_THREADS": "1",
    }
    with serve(tmp_path / "log", **settings, **addresses_only.settings()) as address:
        yield address


def test_pictures_fill_in_by_themselves(elsewhere, addresses_only, tab):
    addresses_only.gate.clear()
    tab.goto(f"{elsewhere}/training_set?page=2")
    expect(tab.get_by_text("Fetching the picture from 127.0.0.1")).to_have_count(6)
    expect(tab.locator(".stMain img")).to_have_count(0)
    addresses_only.gate.set()
    expect(tab.locator(".stMain img")).to_have_count(5)
    expect(tab.get_by_text("404")).to_be_visible()
    expect(tab.get_by_text("Fetching the picture")).to_have_count(0)
