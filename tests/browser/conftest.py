"""One dashboard and one Chromium for all browser tests; skipped in one line where there is no Chromium."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


def load(name: str, path: Path):
    """A helper file by its path: test folders are no packages."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


dashboard = load("dashboard", Path(__file__).with_name("dashboard.py"))
tiny = load("tiny_training_set", Path(__file__).parents[1] / "pages" / "conftest.py")
tiny_training_set = tiny.tiny_training_set
addresses_only = tiny.addresses_only


@pytest.fixture
def serve():
    """Starts a dashboard with settings of one's own."""
    return dashboard.serve


@pytest.fixture(scope="session")
def address(tiny_pipeline_dir, tiny_training_set, tmp_path_factory):
    """Address of a dashboard on the tiny model and training set."""
    folder = tmp_path_factory.mktemp("dashboard")
    settings = {
        "VERBATIM_MODEL": str(tiny_pipeline_dir),
        "VERBATIM_INDEX": str(tiny_training_set / "index"),
        "VERBATIM_PICTURES": str(tiny_training_set / "corpus"),
        "VERBATIM_TEMPLATES": str(tiny_training_set / "templates"),
        "VERBATIM_DATA_DIR": str(folder),
        "VERBATIM_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    with dashboard.serve(folder / "log", **settings) as address:
        yield address


@pytest.fixture(scope="session")
def browser():
    executable = dashboard.chromium()
    if executable is None:
        pytest.skip(
            "No Chromium: install it with `apt-get install chromium` or `playwright install chromium`."
        )
    from playwright.sync_api import expect, sync_playwright

    # a busy machine takes a while to load torch; what is tested here is what appears, not how fast
    expect.set_options(timeout=60_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(dashboard.ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture
def tab(browser):
    """A new tab in a context of its own; an error on the page fails the test."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(60_000)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert errors == []
