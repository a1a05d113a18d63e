"""No page has a serious fault that axe-core knows, in light and in dark: contrast, names, labels, order of headings."""

from __future__ import annotations

import pytest

from audit.records import caption_id

from .conftest import dashboard

pytestmark = pytest.mark.browser

CAPTIONS = ("red house", "blue tree", "green star")
FIRST = caption_id(CAPTIONS[0])
PAGES = {
    "home": "",
    "prompt lab, empty": "prompt_lab",
    "prompt lab": "prompt_lab?caption=red+house&seeds=0-1&steps=2",
    "batch audits": "batch",
    "results": "results?run=first",
    "review": "review",
    "labelling": "review?queue=first",
    "agreement": "agreement",
    "exhibits": "exhibits",
    "exhibits of one export": "exhibits?export=shown",
    "one exhibit": f"exhibits?export=shown&exhibit={FIRST}",
    "training set": "training_set",
    "duplicates": "duplicates",
    "templates": "templates",
}
SERIOUS = ("serious", "critical")
NOT_OURS = "[data-testid='stDataFrame'], [data-testid='stDataFrameResizable'], .js-plotly-plot"
"""Drawn by libraries whose parts we cannot name: each has its text and its data beside it."""


@pytest.fixture(scope="module")
def audited(tiny_pipeline_dir, tiny_training_set, tmp_path_factory):
    """Address of a dashboard with a run, a queue and exhibits."""
    from audit.evidence.export import Asked, export
    from audit.evidence.register import Register
    from audit.evidence.sources import Sources
    from audit.review.fill import fill, find_source
    from audit.review.store import Store
    from audit.runs.run import score
    from audit.runs.verdicts import TrainingSet, decide_run
    from audit.targets.pipelines import load

    folder = tmp_path_factory.mktemp("audited")
    index, templates = str(tiny_training_set / "index"), tiny_training_set / "templates"
    target, run = load(str(tiny_pipeline_dir), device="cpu"), folder / "runs" / "first"
    captions = folder / "captions.txt"
    captions.write_text("\n".join(CAPTIONS))
    run.parent.mkdir()
    score(target, captions, run)
    training_set = TrainingSet.open(index, templates, device="cpu", offline=True)
    decide_run(target, run, training_set, seeds=(0, 1), steps=2, top=None)
    sources = Sources(run, index, templates)
    export(
        sources,
        [FIRST],
        Asked(folder / "exhibits" / "shown"),
        Register(folder / "register.jsonl"),
        who="Ada",
        workers=1,
    )
    store = Store.open(f"sqlite:///{folder / 'review.db'}")
    fill(store, store.enter("Ada"), find_source(str(run)), "first")
    store.close()
    settings = {
        "VERBATIM_MODEL": str(tiny_pipeline_dir),
        "VERBATIM_INDEX": index,
        "VERBATIM_TEMPLATES": str(templates),
        "VERBATIM_DATA_DIR": str(folder),
        "VERBATIM_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    with dashboard.serve(folder / "log", **settings) as address:
        yield address


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_has_a_serious_fault(audited, browser, scheme):
    from axe_playwright_python.sync_playwright import Axe

    axe, found = Axe(), []
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme=scheme)
    context.set_default_timeout(60_000)
    try:
        page = context.new_page()
        page.goto(audited)
        page.evaluate("localStorage.setItem('verbatim reviewer', 'Ada')")
        for name, path in PAGES.items():
            page.goto(f"{audited}/{path}")
            page.wait_for_selector("h1, h2")
            page.wait_for_function(
                '() => !document.querySelector(\'[data-testid="stSkeleton"], [data-testid="stStatusWidget"]\')'
            )
            page.wait_for_timeout(500)
            result = axe.run(page, context={"exclude": [NOT_OURS]}, options={"resultTypes": ["violations"]})
            faults = [each for each in result.response["violations"] if each["impact"] in SERIOUS]
            found += [
                f"{name}: {fault['id']} at {node['target'][0][-200:]}: {node['html'][:200]} {node['failureSummary']}"
                for fault in faults
                for node in fault["nodes"][:3]
            ]
    finally:
        context.close()
    assert not found, "\n".join(found)
