"""The labelling page in a browser: keys, the outbox, hostile captions, the mask editor, people without a mouse."""

import uuid

import numpy as np
import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=document.title='owned'> **bold** :red[x] " + "long " * 120
ITEMS = 8
READY = "[...document.querySelectorAll('*')].some(node => node.shadowRoot?.querySelector('.root[data-item]'))"


@pytest.fixture(scope="module")
def review(tiny_pipeline_dir, tiny_training_set, tmp_path_factory):
    """A dashboard of its own, and a function that makes a queue for a test."""
    import os
    import sys
    from pathlib import Path

    sys.path[:0] = [str(Path(__file__).parent)]
    import dashboard
    import review_run

    from audit.records import Neighbour
    from audit.settings import settings as read_settings

    folder = tmp_path_factory.mktemp("review")
    values = {
        "VERBATIM_MODEL": str(tiny_pipeline_dir),
        "VERBATIM_INDEX": str(tiny_training_set / "index"),
        "VERBATIM_PICTURES": str(tiny_training_set / "corpus"),
        "VERBATIM_TEMPLATES": str(tiny_training_set / "templates"),
        "VERBATIM_DATA_DIR": str(folder),
        "VERBATIM_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }

    def make(name):
        from audit.review.fill import fill
        from audit.review.queue import Queue
        from audit.review.store import Store

        rng = np.random.default_rng(0)
        rows = [
            review_run.Decided(
                f"{HOSTILE}{place}",
                rng.random((256, 256, 3), dtype=np.float32),
                "MV",
                (Neighbour("p1", "one", 0.9, 0, 50.0), Neighbour("p9", "nine", 0.8, 1, 90.0)),
                distance=100.0 * (place + 1),
            )
            for place in range(ITEMS)
        ]
        review_run.write(folder / "runs" / name, rows)
        store = Store.open(f"sqlite:///{folder / 'review.db'}")
        queue = Queue(store, name)
        fill(store, store.enter("ann"), folder / "runs" / name, name)
        return queue

    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    read_settings.cache_clear()
    (folder / "runs").mkdir()
    with dashboard.serve(folder / "log", **values) as address:
        yield address, make
    for name, value in before.items():
        if value is None:
            os.environ.pop(name)
        else:
            os.environ[name] = value
    read_settings.cache_clear()


def opened(tab, address, queue, who="ann", **more):
    extra = "".join(f"&{name}={value}" for name, value in more.items())
    tab.goto(f"{address}/review?queue={queue.name}{extra}")
    field = tab.get_by_label("Your name")
    expect(field.or_(tab.locator(".root[data-item]")).first).to_be_visible()
    if field.count():
        field.fill(who)
        field.press("Enter")
    return ready(tab)


def ready(tab):
    tab.wait_for_function(READY)
    return tab.locator(".root[data-item]")


def stored(tab):
    expect(tab.locator(".outbox")).to_have_text("")


def labels(queue, who="ann"):
    found = queue.store.labels(queue.store.enter("ann"))
    return found[(found["who"] == who) & (found["queue"] == queue.name)]["label"].tolist()


def test_keys_label_skip_flag_and_take_back(review, tab):
    address, make = review
    queue = make(f"q{uuid.uuid4().hex[:8]}")
    root = opened(tab, address, queue)
    seen = []
    for key in "1234":
        seen.append(root.get_attribute("data-item"))
        tab.keyboard.press(key)
        expect(root).not_to_have_attribute("data-item", seen[-1])
    stored(tab)
    assert labels(queue) == ["MV", "RV", "TV", "N"]
    tab.keyboard.press("Backspace")
    expect(root).to_have_attribute("data-item", seen[-1])
    tab.keyboard.press("5")
    here = root.get_attribute("data-item")
    tab.keyboard.press("f")
    tab.keyboard.type("is it 1 or 2?")
    tab.keyboard.press("Enter")
    expect(tab.locator(".chip.flag")).to_have_text("flagged: is it 1 or 2?")
    expect(root).to_have_attribute("data-item", here)
    stored(tab)
    tab.reload()
    root = ready(tab)
    expect(tab.locator(".chip.flag")).to_have_text("flagged: is it 1 or 2?")
    tab.keyboard.press("f")
    expect(tab.locator(".chip.flag")).to_have_count(0)
    tab.keyboard.press("f")
    tab.keyboard.type("is it 1 or 2?")
    tab.keyboard.press("Enter")
    expect(tab.locator(".chip.flag")).to_be_visible()
    tab.keyboard.press("1")
    tab.keyboard.press("Space")
    stored(tab)
    assert labels(queue) == ["MV", "RV", "TV", "PV", "MV"]
    found = queue.store.labels(queue.store.enter("ann")).set_index("item_id")
    assert found.loc[here, "note"] == "is it 1 or 2?"
    assert queue.store.verify(queue.store.root()) == []


def test_a_reload_loses_no_answer(review, tab, browser):
    from audit.ui.labelling import AHEAD

    address, make = review
    queue = make(f"q{uuid.uuid4().hex[:8]}")
    root = opened(tab, address, queue)
    expect(root).to_have_attribute("data-ahead", str(AHEAD + 1))
    # what is sent from now on does not arrive: the server may be gone
    tab.evaluate("() => { WebSocket.prototype.send = () => {}; }")
    for _ in range(3):
        here = root.get_attribute("data-item")
        tab.keyboard.press("4")
        expect(root).not_to_have_attribute("data-item", here)
    expect(tab.locator(".outbox")).to_contain_text("3 answers not stored yet")
    expect(tab.locator(".outbox")).to_contain_text("kept in this tab", timeout=10_000)
    assert labels(queue) == []
    tab.on("dialog", lambda dialog: dialog.accept())
    tab.reload()
    ready(tab)
    stored(tab)
    assert labels(queue) == ["N", "N", "N"]


def test_a_lost_hold_is_told(review, tab):
    from audit.review.queue import Answer

    address, make = review
    queue = make(f"q{uuid.uuid4().hex[:8]}")
    root = opened(tab, address, queue)
    ann, bob = queue.store.enter("ann"), queue.store.enter("bob")
    item_id = root.get_attribute("data-item")
    queue.give_back(ann)
    item = next(each for each in queue.take(bob, 20) if each.item_id == item_id)
    tab.keyboard.press("1")
    expect(tab.locator(".alarm")).to_contain_text("This answer was not stored.")
    expect(tab.locator(".alarm")).to_contain_text("somebody else")
    tab.get_by_role("button", name="Understood").click()
    expect(tab.locator(".alarm")).to_have_count(0)
    queue.answer(bob, item.item_id, Answer(uuid.uuid4().hex, "N"))


def test_blurred_pictures_are_not_judged(review, tab):
    address, make = review
    queue = make(f"q{uuid.uuid4().hex[:8]}")
    root = opened(tab, address, queue)
    first = root.get_attribute("data-item")
    tab.get_by_text("Blur pictures", exact=True).click()
    expect(tab.get_by_role("img", name="(blurred)").first).to_be_visible()
    ready(tab)
    tab.keyboard.press("1")
    expect(tab.locator(".last")).to_contain_text("are blurred")
    assert root.get_attribute("data-item") == first and labels(queue) == []
    tab.get_by_text("Blur pictures", exact=True).click()
    expect(tab.get_by_role("img", name="(blurred)")).to_have_count(0)
    ready(tab)
    tab.keyboard.press("1")
    stored(tab)
    assert labels(queue) == ["MV"]


def test_who_decides_may_skip_and_ask_again(review, tab):
    from audit.review.queue import Answer
    from audit.review.roles import Person, Role

    address, make = review
    queue = make(f"q{uuid.uuid4().hex[:8]}")
    for who, label in (("bob", "MV"), ("cat", "N")):
        person = Person(who, Role.ANNOTATOR)
        for item in queue.take(person, 2):
            queue.answer(person, item.item_id, Answer(uuid.uuid4().hex, label))
    root = opened(tab, address, queue, task="decide")
    first = root.get_attribute("data-item")
    tab.keyboard.press("Space")
    expect(root).not_to_have_attribute("data-item", first)
    stored(tab)
    tab.keyboard.press("1")
    expect(tab.locator(".empty")).to_contain_text("to be decided, none is for you")
    expect(tab.locator(".alarm")).to_have_count(0)
    tab.keyboard.press("a")
    expect(tab.locator(f".root[data-item='{first}']")).to_be_visible()
    tab.keyboard.press("1")
    expect(tab.locator(".empty")).to_contain_text("Nobody disagrees")
    assert queue.decisions(queue.store.enter("ann"))["status"].tolist().count("adjudicated") == 2


def test_what_somebody_leaves_comes_to_who_waits(review, browser):
    """A closed tab holds nothing, and who has nothing left is shown what comes free without a key."""
    address, make = review
    queue = make(f"q{uuid.uuid4().hex[:8]}")
    contexts = [browser.new_context(viewport={"width": 1440, "height": 900}) for _ in range(2)]
    first, second = (context.new_page() for context in contexts)
    opened(first, address, queue)
    ann, rest = queue.store.enter("ann"), queue.store.enter("eve")
    held = {item.item_id for item in queue.take(ann, ITEMS)}
    assert len(held) == ITEMS and queue.take(rest) == []
    second.goto(f"{address}/review?queue={queue.name}")
    second.get_by_label("Your name").fill("bob")
    second.keyboard.press("Enter")
    expect(second.locator(".empty")).to_contain_text(f"{ITEMS} items are left, held by somebody else")
    contexts[0].close()
    ready(second)
    for context in contexts[1:]:
        context.close()


def test_hostile_captions_are_text_and_every_view_has_words(review, tab):
    address, make = review
    queue = make(f"q{uuid.uuid4().hex[:8]}")
    root = opened(tab, address, queue)
    expect(root.locator("h1")).to_contain_text(HOSTILE.strip())
    assert tab.title() != "owned"
    expect(root.get_by_role("button", name="Whole caption")).to_be_visible()
    for key, name in zip(
        "swobdx",
        ["Side by side", "Swipe", "Onion skin", "Blink", "Difference", "Masked difference"],
        strict=True,
    ):
        tab.keyboard.press(key)
        expect(root.get_by_role("button", name=name, exact=True).first).to_have_attribute(
            "aria-pressed", "true"
        )
        for surface in root.locator(".panes canvas:visible").all():
            assert surface.get_attribute("aria-label")
            # something was drawn, and it is not all one colour
            assert (
                surface.evaluate(
                    "node => new Set(node.getContext('2d').getImageData(0, 0, node.width, node.height).data).size"
                )
                > 1
            )
    assert all(
        node.inner_text().strip() or node.get_attribute("aria-label")
        for node in root.locator("button:visible").all()
    )


def test_arrows_choose_the_candidate_and_the_answer_names_it(review, tab):
    address, make = review
    queue = make(f"q{uuid.uuid4().hex[:8]}")
    root = opened(tab, address, queue)
    item_id = root.get_attribute("data-item")
    expect(root.locator(".about")).to_contain_text("1 of")
    tab.keyboard.press("ArrowRight")
    expect(root.locator(".about")).to_contain_text("2 of")
    tab.keyboard.press("2")
    expect(root).not_to_have_attribute("data-item", item_id)
    stored(tab)
    found = queue.store.labels(queue.store.enter("ann")).set_index("item_id")
    assert found.loc[item_id, "image_id"] == "p9"


# The first item's pictures come in order: what the model drew, the first candidate with mask and template, the second.
SECOND_IS_MISSING = """
const decode = Image.prototype.decode;
let count = 0, second = null;
Image.prototype.decode = function () {
  if (++count === 5) second = this.src;
  return this.src === second ? Promise.reject("not yet") : decode.call(this);
};
"""


def test_a_candidate_that_is_not_painted_gets_no_answer(review, tab):
    address, make = review
    queue = make(f"q{uuid.uuid4().hex[:8]}")
    tab.add_init_script(SECOND_IS_MISSING)
    item_id = opened(tab, address, queue).get_attribute("data-item")
    tab.keyboard.press("ArrowRight")
    expect(tab.locator(".about")).to_contain_text("2 of")
    expect(tab.locator(".root[data-item]")).to_have_count(0)
    tab.keyboard.press("2")
    tab.keyboard.press("ArrowLeft")
    root = tab.locator(".root[data-item]")
    expect(root).to_have_attribute("data-item", item_id)
    tab.keyboard.press("1")
    expect(root).not_to_have_attribute("data-item", item_id)
    stored(tab)
    assert labels(queue) == ["MV"]


SENT = """
const send = WebSocket.prototype.send;
window.sent = "";
WebSocket.prototype.send = function (data) {
  window.sent = new TextDecoder().decode(data);
  send.call(this, data);
};
"""


def test_the_server_is_told_when_the_mask_editor_opens_and_closes(review, tab):
    address, make = review
    queue = make(f"q{uuid.uuid4().hex[:8]}")
    tab.add_init_script(SENT)
    opened(tab, address, queue)
    tab.keyboard.press("m")
    tab.wait_for_function("""sent.includes('"editing":"template-p0"')""")
    tab.keyboard.press("Escape")
    tab.wait_for_function("""sent.includes('"editing":""')""")


def test_zoom_moves_all_panes_together(review, tab):
    address, make = review
    queue = make(f"q{uuid.uuid4().hex[:8]}")
    root = opened(tab, address, queue)

    def pixels():
        return [
            node.evaluate("node => node.toDataURL()") for node in root.locator(".panes canvas:visible").all()
        ]

    before = pixels()
    tab.keyboard.press("z")
    zoomed = pixels()
    assert all(one != other for one, other in zip(before, zoomed, strict=True))
    tab.keyboard.press("Shift+ArrowRight")
    assert all(one != other for one, other in zip(zoomed, pixels(), strict=True))
    tab.keyboard.press("0")
    assert pixels() == before


def test_the_masked_distance_shown_is_the_one_that_the_saved_version_gives(review, tab, tiny_training_set):
    import re
    from pathlib import Path

    from audit.images import decode, resize
    from audit.records import PictureKind
    from audit.review.events import EventKind
    from audit.runs.templates import versions_of
    from audit.ui.results import opened as results
    from audit.verbatim.distances import masked_sse
    from audit.verbatim.templates import TemplateLibrary

    address, make = review
    queue = make(f"q{uuid.uuid4().hex[:8]}")
    root = opened(tab, address, queue)
    item = queue.item(queue.store.enter("ann"), root.get_attribute("data-item"))
    tab.keyboard.press("m")
    editor = root.locator(".editor")
    expect(editor).to_be_visible()
    surface = editor.locator("canvas").first
    box = surface.bounding_box()

    def drag(*points):
        tab.mouse.move(*points[0])
        tab.mouse.down()
        for point in points[1:]:
            tab.mouse.move(*point)
        tab.mouse.up()

    at = lambda x, y: (box["x"] + x * box["width"], box["y"] + y * box["height"])  # noqa: E731
    drag(at(0.1, 0.1), at(0.3, 0.2), at(0.6, 0.15))
    tab.keyboard.press("t")
    drag(at(0.5, 0.5), at(0.9, 0.7))
    tab.keyboard.press("p")
    for point in (at(0.1, 0.6), at(0.3, 0.6), at(0.2, 0.9)):
        tab.mouse.click(*point)
    tab.keyboard.press("Enter")
    for key in "gkkg":
        tab.keyboard.press(key)
    measure = editor.locator(".measure")
    expect(measure).to_contain_text("7 steps, not saved")
    told = float(re.search(r"Masked distance ([\d,]+)", measure.inner_text())[1].replace(",", ""))
    tab.keyboard.press("Enter")
    expect(editor).to_be_hidden()
    stored(tab)
    (event,) = [
        each for each in queue.store.events([EventKind.MASK_SAVED]) if each.body["item_id"] == item.item_id
    ]
    templates = tiny_training_set / "templates"
    library = TemplateLibrary.load(templates, versions_of(templates), {event.subject: event.body["number"]})
    template = next(each for each in library.templates if each.template_id == event.subject)
    picture = results(Path(item.run_path)).pictures([item.caption_id])[item.caption_id, PictureKind.SAMPLE]
    exact = float(masked_sse(template.image, template.mask, resize(decode(picture.png, "sample"))))
    assert told == pytest.approx(exact, rel=2e-3)
    expect(root.locator(".last")).to_contain_text(f"version {event.body['number']}")


def test_who_edits_a_mask_of_somebody_else_starts_from_the_one_as_found(review, browser, tiny_training_set):
    """Cat is not shown what Ada drew unless she asks for it; the distance is that of the mask she is shown."""
    import re
    from pathlib import Path

    from audit.images import decode, resize
    from audit.records import PictureKind
    from audit.review.events import EventKind
    from audit.runs.templates import versions_of
    from audit.ui.results import opened as results
    from audit.verbatim.distances import masked_sse
    from audit.verbatim.editing import Edit, Tool, apply
    from audit.verbatim.templates import TemplateLibrary
    from audit.verbatim.versions import drawn_alone, versions

    address, make = review
    queue = make(f"q{uuid.uuid4().hex[:8]}")
    templates = tiny_training_set / "templates"
    contexts = []

    def sat(who):
        contexts.append(browser.new_context(viewport={"width": 1440, "height": 900}))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        root = opened(page, address, queue, who)
        return page, root, root.locator(".editor")

    def told(editor):
        return float(re.search(r"Masked distance ([\d,]+)", editor.inner_text())[1].replace(",", ""))

    def saved(page, root):
        page.keyboard.press("Enter")
        stored(page)
        (event,) = [
            each
            for each in queue.store.events([EventKind.MASK_SAVED])
            if each.body["item_id"] == root.get_attribute("data-item")
        ]
        return event

    page, root, editor = sat("ada")
    page.keyboard.press("m")
    expect(editor.locator(".started")).to_contain_text("You start from")
    for key in "kkkkk":
        page.keyboard.press(key)
    first = saved(page, root)
    expect(root.locator(".last")).to_contain_text(f"version {first.body['number']}")
    # her own is what she goes on with
    page.keyboard.press("m")
    expect(editor.locator(".started")).to_contain_text("which you saved")

    page, root, editor = sat("cat")
    item = queue.item(queue.store.enter("ann"), root.get_attribute("data-item"))
    picture = results(Path(item.run_path)).pictures([item.caption_id])[item.caption_id, PictureKind.SAMPLE]
    generated = resize(decode(picture.png, "sample"))
    libraries = [
        TemplateLibrary.load(templates, versions_of(templates), {first.subject: number})
        for number in (0, first.body["number"])
    ]
    as_found, shrunk = (
        next(each for each in library.templates if each.template_id == first.subject) for library in libraries
    )

    def distance(mask):
        return float(masked_sse(as_found.image, mask, generated))

    page.keyboard.press("m")
    started = editor.locator(".started")
    expect(started).to_contain_text("as it was found, to draw by yourself")
    exact = pytest.approx(distance(as_found.mask), rel=2e-4)
    assert told(editor) == exact and distance(shrunk.mask) != exact
    last = editor.get_by_role("button", name=f"Start from last version ({first.body['number']}, by ada)")
    last.click()
    expect(started).to_contain_text("counts in no agreement")
    assert told(editor) == pytest.approx(distance(shrunk.mask), rel=2e-4)
    page.keyboard.press("k")
    page.keyboard.press("s")
    expect(editor.get_by_role("button", name="Start from last version")).to_be_visible()
    drawn = apply(as_found.mask, [Edit(Tool.SHRINK, amount=1)])
    assert told(editor) == pytest.approx(distance(drawn), rel=2e-4), "the step stays, on the other mask"
    second = saved(page, root)
    assert second.body["number"] == first.body["number"] + 1
    history = versions(versions_of(templates), as_found)[0]
    assert history[-1].edits == (Edit(Tool.FOUND), Edit(Tool.SHRINK, amount=1))
    assert (history[-1].mask == drawn).all() and drawn_alone(history)[-1].number == history[-1].number
    for context in contexts:
        context.close()


def test_no_blinking_where_motion_is_not_wanted(review, browser):
    address, make = review
    queue = make(f"q{uuid.uuid4().hex[:8]}")
    context = browser.new_context(reduced_motion="reduce", viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.set_default_timeout(60_000)
    root = opened(page, address, queue)
    page.keyboard.press("b")
    expect(root.get_by_role("button", name="Play")).to_be_visible()
    canvas = root.locator(".panes canvas:visible").first
    before = canvas.evaluate("node => node.toDataURL()")
    page.wait_for_timeout(1_600)
    assert canvas.evaluate("node => node.toDataURL()") == before
    page.keyboard.press("b")
    assert canvas.evaluate("node => node.toDataURL()") != before
    context.close()


def test_a_narrow_screen_needs_no_sideways_scrolling(review, browser):
    address, make = review
    queue = make(f"q{uuid.uuid4().hex[:8]}")
    context = browser.new_context(viewport={"width": 420, "height": 800})
    page = context.new_page()
    page.set_default_timeout(60_000)
    root = opened(page, address, queue)
    assert page.evaluate("document.querySelector('.stMain').scrollWidth") <= 420
    for key in "wm":
        page.keyboard.press(key)
        page.wait_for_timeout(300)
        assert page.evaluate("document.querySelector('.stMain').scrollWidth") <= 420
    expect(root.get_by_role("button", name="Close").last).to_be_visible()
    context.close()
