"""No page has a serious fault that axe-core knows, in light and in dark: contrast, names, labels, order of headings.

Each page is looked at with data in it, with everything opened that opens; and exhibits are read by keys alone.
"""

from __future__ import annotations

import uuid
from typing import NamedTuple

import pytest
from playwright.sync_api import expect

from audit.records import caption_id

from .conftest import dashboard

pytestmark = pytest.mark.browser

CAPTIONS = ("red house", "blue tree", "green star")
FIRST = caption_id(CAPTIONS[0])


class Page(NamedTuple):
    """A page's address, and words that stand on it only when its data does."""

    path: str
    words: str
    press: str = ""
    """Button that makes the data."""


PAGES = {
    "home": Page("", "30 pictures"),
    "prompt lab, empty": Page("prompt_lab", "Type a caption above"),
    "prompt lab": Page("prompt_lab?caption=red+house&seeds=0-1&steps=2", "Nearest training images"),
    "batch audits": Page("batch", "first"),
    "results": Page("results?run=first&other=second", "rank correlation"),
    "results as pictures": Page("results?run=first&view=gallery", "After a single denoising step"),
    "review": Page("review", "People and roles"),
    "labelling": Page("review?queue=first", "No copy"),
    "agreement": Page("agreement?queue=answered", "Each person"),
    "exhibits": Page("exhibits", "3 exhibits"),
    "exhibits of one export": Page("exhibits?export=shown", "Open the exhibit"),
    "one exhibit": Page(f"exhibits?export=shown&exhibit={FIRST}", "Checked just now"),
    "training set": Page("training_set", "Title 5"),
    "training set, searched": Page("training_set?query=house", "red house"),
    "families": Page("training_set?view=families", "Show all 4"),
    "duplicates": Page("duplicates?run=first", "Clusters", press="Look for duplicates"),
    "templates": Page("templates?run=first", "members share"),
    "one template": Page("templates?run=first&template=template-p0", "members share"),
    "audit trail": Page("audit_trail", "The whole trail"),
}
SERIOUS = ("serious", "critical")
NOT_OURS = "[data-testid='stDataFrame'], [data-testid='stDataFrameResizable'], .js-plotly-plot"
"""Drawn by libraries whose parts we cannot name: each has its text and its data beside it."""
AT_REST = '() => !document.querySelector(\'[data-testid="stSkeleton"], [data-testid="stStatusWidget"]\')'

OPEN = """() => document.querySelectorAll("[data-testid='stExpander'] details:not([open]) > summary")
  .forEach(summary => summary.click())"""
FOCUS_IS_SEEN = """() => {
  const style = getComputedStyle(document.activeElement);
  return style.outlineStyle !== "none" || style.boxShadow !== "none";
}"""
CLAIMS_ARE_SEEN = """() => {
  const claims = document.querySelector(".st-key-exhibit-claims"), box = claims.getBoundingClientRect();
  return claims.contains(document.elementFromPoint(box.x + 30, box.y + box.height / 2));
}"""


@pytest.fixture(scope="module")
def audited(tiny_pipeline_dir, tiny_training_set, tmp_path_factory):
    """Address of a dashboard with runs, queues, labels and exhibits."""
    from audit.evidence.export import Asked, export
    from audit.evidence.register import Register
    from audit.evidence.sources import Sources
    from audit.review.fill import fill, find_source
    from audit.review.queue import Answer, Queue
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
    score(target, captions, run, seeds=(0, 1))
    score(target, captions, run.with_name("second"))
    training_set = TrainingSet.open(index, templates, device="cpu", offline=True)
    decide_run(target, run, training_set, seeds=(0, 1), steps=2, top=None)
    sources = Sources(run, index, templates)
    export(
        sources,
        list(map(caption_id, CAPTIONS)),
        Asked(folder / "exhibits" / "shown"),
        Register(folder / "register.jsonl"),
        who="Ada",
        workers=1,
    )
    store = Store.open(f"sqlite:///{folder / 'review.db'}")
    auditor = store.enter("Ada")
    for name in ("first", "answered"):
        fill(store, auditor, find_source(str(run)), name)
    queue = Queue(store, "answered")
    for person in (store.enter("Bob"), store.enter("Cat")):
        while items := queue.take(person):
            queue.answer(person, items[0].item_id, Answer(uuid.uuid4().hex, "N"))
    store.close()
    settings = {
        "VERBATIM_MODEL": str(tiny_pipeline_dir),
        "VERBATIM_INDEX": index,
        "VERBATIM_PICTURES": str(tiny_training_set / "corpus"),
        "VERBATIM_TEMPLATES": str(templates),
        "VERBATIM_DATA_DIR": str(folder),
        "VERBATIM_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    with dashboard.serve(folder / "log", **settings) as address:
        yield address


@pytest.fixture
def tab(audited, browser, request):
    """Somebody who has given their name, in light or in dark."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme=request.param)
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.goto(audited)
    page.evaluate("localStorage.setItem('verbatim reviewer', 'Ada')")
    yield page
    context.close()


def rest(page):
    page.wait_for_function(AT_REST)
    page.wait_for_timeout(500)
    page.wait_for_function(AT_REST)


def opened(page):
    """Everything that opens, one state of the page after the other."""
    page.evaluate(OPEN)
    rest(page)
    yield "opened"
    for place in range(page.get_by_role("tab").count()):
        page.get_by_role("tab").nth(place).click()
        rest(page)
        yield f"tab {place + 1}"
    for button in page.locator("[data-testid='stMain'] [data-testid='stPopover'] button").all():
        button.click()
        expect(page.locator("[data-testid='stPopoverBody']")).to_be_visible()
        rest(page)
        yield f"{button.inner_text()!r}"
        page.keyboard.press("Escape")
        expect(page.locator("[data-testid='stPopoverBody']")).to_be_hidden()


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("tab", ["light", "dark"], indirect=True)
def test_no_page_has_a_serious_fault(audited, tab, name):
    from axe_playwright_python.sync_playwright import Axe

    axe, found = Axe(), []
    path, words, press = PAGES[name]
    tab.goto(f"{audited}/{path}")
    main = tab.locator("[data-testid='stMain']")
    if press:
        there = main.get_by_text(words, exact=True).or_(main.get_by_role("button", name=press))
        expect(there.first).to_be_visible()
        if (button := main.get_by_role("button", name=press)).count():
            button.click()
    expect(main.get_by_text(words).first).to_be_visible()
    rest(tab)
    assert not tab.locator(
        "[data-testid='stAlertContentError'], [data-testid='stException']"
    ).all_inner_texts()
    for state in opened(tab):
        result = axe.run(tab, context={"exclude": [NOT_OURS]}, options={"resultTypes": ["violations"]})
        found += [
            f"{state}: {fault['id']} at {node['target'][0][-200:]}: {node['html'][:200]} {node['failureSummary']}"
            for fault in result.response["violations"]
            if fault["impact"] in SERIOUS
            for node in fault["nodes"][:3]
        ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("tab", ["light"], indirect=True)
def test_exhibits_are_read_by_keys_alone(audited, tab):
    def reach(label):
        """Press Tab until the button of this name has the focus, which has to be seen."""
        for _ in range(80):
            tab.keyboard.press("Tab")
            if label in tab.evaluate("document.activeElement.closest('button, summary')?.innerText || ''"):
                assert tab.evaluate(FOCUS_IS_SEEN)
                return
        raise AssertionError(f"Tab does not come to {label}")

    main = tab.locator("[data-testid='stMain']")
    tab.goto(f"{audited}/exhibits")
    expect(main).to_contain_text("3 exhibits")
    rest(tab)
    reach("Open")
    tab.keyboard.press("Enter")
    expect(main).to_contain_text("Open the exhibit")
    rest(tab)
    reach("Open the exhibit")
    tab.keyboard.press("Enter")
    expect(main).to_contain_text("Checked just now")
    expect(main).to_contain_text("Exhibit 1 of 3")
    rest(tab)
    tab.keyboard.press("ArrowRight")
    expect(main).to_contain_text("Exhibit 2 of 3")
    expect(main).to_contain_text("Checked just now")
    rest(tab)
    tab.keyboard.press("1")
    tab.wait_for_url("**mode=side**")
    reach("Limits")
    tab.keyboard.press("Enter")
    expect(main).to_contain_text("Only the images that were looked up are compared")
    assert tab.evaluate(CLAIMS_ARE_SEEN)  # although the page has scrolled
    reach("Report, PDF")
    with tab.expect_download() as taken:
        tab.keyboard.press("Enter")
    assert taken.value.suggested_filename.endswith("report.pdf")
    assert tab.evaluate(CLAIMS_ARE_SEEN)
