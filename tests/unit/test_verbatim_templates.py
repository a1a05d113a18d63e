"""Template families drawn for the test: found among other pictures, masked, saved and loaded."""

import json
import multiprocessing
import shutil
import time
from collections import Counter
from dataclasses import replace
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw, ImageFont

from audit.corpus import duplicates
from audit.errors import InputError
from audit.images import resize
from audit.records import Template
from audit.runs.templates import versions_of
from audit.settings import DEMO, settings
from audit.verbatim import templates as module
from audit.verbatim.distances import masked_sse, sse
from audit.verbatim.editing import Edit, Tool, apply
from audit.verbatim.masks import changed_iou, pair_mask
from audit.verbatim.templates import TemplateLibrary, discover
from audit.verbatim.versions import beside, drawn_alone, template_sha256, version_path, versions

SIZE = 128
COLOURS = ["#d02020", "#20a020", "#2040d0", "#d0c020", "#a020a0", "#20b0b0", "#f08020", "#202020"]


def background(rng):
    start, end = rng.uniform(40, 220, (2, 3))
    along = (np.linspace(0, 1, SIZE)[:, None] + np.linspace(0, 1, SIZE)[None]) / 2
    return Image.fromarray((start + (end - start) * along[..., None]).astype(np.uint8))


def shapes(rng, picture):
    draw = ImageDraw.Draw(picture)
    for _ in range(6):
        left, top = rng.integers(4, SIZE - 44, 2)
        box = [int(left), int(top), int(left + rng.integers(16, 40)), int(top + rng.integers(16, 40))]
        colour = tuple(rng.integers(0, 256, 3).tolist())
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)(box, fill=colour, outline="black")
    return picture


def drawn(rng):
    return shapes(rng, background(rng))


def family(rng, style, box, count=8):
    """Members that share a drawing but for a box: another colour, stripes or lettering on it."""
    base = drawn(rng)
    members = []
    for number in range(count):
        member = base.copy()
        draw = ImageDraw.Draw(member)
        ground = COLOURS[number] if style != "contrast" else "#c8c8c8" if number % 2 else "#b4b4b4"
        draw.rectangle(box, fill=ground)
        if style == "pattern":
            for x in range(box[0], box[2], 4 + number % 3):
                draw.line([x, box[1], x, box[3]], fill=COLOURS[number - 1])
        if style == "lettering":
            font = ImageFont.load_default(size=20)
            draw.text((box[0] + 3, box[1] + 3), "ABCDEFGH"[number] * 3, fill="white", font=font)
        members.append(np.asarray(member, np.float32) / 255)
    truth = np.ones((256, 256), bool)
    left, top, right, bottom = (2 * side for side in box)
    truth[top : bottom + 2, left : right + 2] = False
    return members, truth


def embeddings_of(pictures):
    """Stand-in for CLIP: a few pixels of each picture, centred."""
    vectors = np.stack([resize(picture, 8).ravel() - 0.5 for picture in pictures])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def training_set():
    """Four families of eight among sixty other drawings and twenty bare gradients, in random order."""
    rng = np.random.default_rng(3)
    boxes = {
        "colour": [60, 30, 110, 74],
        "pattern": [10, 70, 118, 100],
        "lettering": [20, 20, 66, 62],
        "contrast": [40, 40, 100, 100],
    }
    pictures, names, truths = [], [], {}
    for style, box in boxes.items():
        members, truths[style] = family(rng, style, box)
        pictures += members
        names += [f"{style}-{i}" for i in range(8)]
    for i in range(60):
        pictures.append(np.asarray(drawn(rng), np.float32) / 255)
        names.append(f"once-{i}")
    same = np.random.default_rng(9)
    for i in range(20):
        pictures.append(
            np.asarray(background(same if i < 10 else np.random.default_rng(9)), np.float32) / 255
        )
        names.append(f"bare-{i}")
    order = rng.permutation(len(names))
    return [names[i] for i in order], [resize(pictures[i]) for i in order], truths


@pytest.fixture(scope="module")
def found(training_set):
    names, pictures, _ = training_set
    return discover(names, pictures.__getitem__, embeddings_of(pictures))


def test_each_family_is_found_whole_and_nothing_else(found):
    families = {frozenset(template.members) for template in found}
    assert families == {
        frozenset(f"{style}-{i}" for i in range(8))
        for style in ("colour", "pattern", "lettering", "contrast")
    }


def test_masks_mark_the_changed_region(found, training_set):
    _, _, truths = training_set
    for template in found:
        style = template.image_id.split("-")[0]
        assert changed_iou(template.mask, truths[style]) >= 0.85, style


def test_the_families_lie_inside_and_far_outside_of_the_gate_on_distance(training_set):
    names, pictures, _ = training_set
    by_name = dict(zip(names, pictures, strict=True))
    distances = {
        style: float(sse(by_name[f"{style}-0"], by_name[f"{style}-1"])) for style in ("colour", "contrast")
    }
    assert 100 < distances["contrast"] < 1000 < 5000 < distances["colour"]


def test_template_picture_is_its_first_member(found, training_set):
    names, pictures, _ = training_set
    for template in found:
        assert template.members[0] == template.image_id
        np.testing.assert_array_equal(template.image, pictures[names.index(template.image_id)])


def test_families_are_found_without_help_from_the_embedding(training_set):
    names, pictures, _ = training_set
    blind = np.random.default_rng(0).normal(size=(len(names), 8)).astype(np.float32)
    assert len(discover(names, pictures.__getitem__, blind)) == 4


def test_inverted_lists_find_the_same_families_however_many_copies_crowd_them(training_set, monkeypatch):
    """Each picture 20 times: its nearest 16 are copies of itself."""
    names, pictures, _ = training_set
    few = [place for place, name in enumerate(names) if name.startswith(("colour", "once-1"))]
    many = [place for place in few for _ in range(20)]
    expected = discover(
        [names[place] for place in few], lambda i: pictures[few[i]], embeddings_of(pictures)[few]
    )
    monkeypatch.setattr(duplicates, "FLAT", 50)
    found = discover(
        [f"{names[place]}/{number}" for number, place in enumerate(many)],
        lambda i: pictures[many[i]],
        embeddings_of(pictures)[many].astype(np.float16),
    )
    assert [len(family.members) for family in found] == [20 * len(family.members) for family in expected]
    assert changed_iou(found[0].mask, expected[0].mask) > 0.9


def test_copies_of_one_picture_are_compared_with_one_of_them_only(training_set, monkeypatch):
    names, pictures, _ = training_set
    picture = pictures[names.index("once-1")]
    compared = []
    monkeypatch.setattr(module, "pair_mask", lambda a, b: compared.append(1) or pair_mask(a, b))
    assert discover([str(i) for i in range(40)], lambda i: picture, np.ones((40, 2), np.float32)) == []
    assert len(compared) == 39


def test_pictures_that_cannot_be_opened_are_left_out(training_set):
    names, pictures, _ = training_set
    lost = {names.index("colour-3"), names.index("once-5")}
    seen = []
    templates = discover(
        names,
        lambda i: None if i in lost else pictures[i],
        embeddings_of(pictures),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert sorted(len(template.members) for template in templates) == [7, 8, 8, 8]
    assert seen[len(names) - 1] == (len(names), 2 * len(names))
    assert seen[-1] == (2 * len(names), 2 * len(names))


def test_exact_duplicates_alone_are_no_template(training_set):
    _, pictures, _ = training_set
    twins = [pictures[0]] * 3
    assert discover("abc", twins.__getitem__, np.ones((3, 2), np.float32)) == []


def test_exact_duplicates_of_members_join_their_family(training_set):
    names, pictures, truths = training_set
    chosen = [pictures[names.index(f"colour-{i}")] for i in (0, 0, 0, 0, 1, 2)]
    (template,) = discover("abcdef", chosen.__getitem__, np.ones((6, 2), np.float32))
    assert set(template.members) == set("abcdef")
    assert changed_iou(template.mask, truths["colour"]) >= 0.85


def test_a_picture_that_changes_elsewhere_is_no_member(training_set):
    names, pictures, truths = training_set
    chosen = [pictures[names.index(f"colour-{i}")] for i in range(6)]
    stranger = chosen[0].copy()
    stranger[160:240, 20:120] = 1 - stranger[160:240, 20:120]
    chosen.append(stranger)
    (template,) = discover("abcdefg", chosen.__getitem__, np.ones((7, 2), np.float32))
    assert "g" not in template.members
    assert changed_iou(template.mask, truths["colour"]) >= 0.85


def test_bad_and_small_inputs():
    with pytest.raises(InputError, match="2 names and 1 embeddings"):
        discover("ab", lambda i: None, np.ones((1, 2), np.float32))
    assert discover("a", lambda i: None, np.ones((1, 2), np.float32)) == []
    assert discover("ab", lambda i: None, np.ones((2, 2), np.float32)) == []


def test_library_loads_what_it_saved(found, tmp_path):
    TemplateLibrary(tuple(found)).save(tmp_path / "templates")
    loaded = TemplateLibrary.load(tmp_path / "templates")
    assert loaded.refused == {} and len(loaded.templates) == 4
    for before, after in zip(found, loaded.templates, strict=True):
        assert (after.template_id, after.members, after.image_id) == (
            before.template_id,
            before.members,
            before.image_id,
        )
        np.testing.assert_array_equal(after.mask, before.mask)
        np.testing.assert_allclose(after.image, before.image, atol=1e-6)
    assert loaded.of_image(found[1].members[3]).template_id == found[1].template_id
    assert loaded.of_image("once-1") is None
    columns = pq.read_table(tmp_path / "templates" / "templates.parquet").column_names
    assert {"url", "mask_file", "img_file"} <= set(columns)


def test_saving_replaces_a_library_whole(found, tmp_path):
    folder = tmp_path / "templates"
    TemplateLibrary(tuple(found)).save(folder)
    TemplateLibrary(tuple(found[:1])).save(folder)
    assert len(TemplateLibrary.load(folder).templates) == 1
    assert len(list((folder / "masks").iterdir())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["templates"]
    TemplateLibrary(()).save(folder)
    assert TemplateLibrary.load(folder).templates == ()


@pytest.mark.parametrize("own", ["masks/mine.png", "thesis.docx", "metadata.parquet", "images/00000.jpg"])
def test_a_folder_with_anything_of_somebody_elses_is_never_replaced(own, found, tmp_path):
    """Also where it looks like a library, or is one with more in it."""
    folder = tmp_path / "templates"
    if own.startswith("images"):
        TemplateLibrary(tuple(found)).save(folder)
    table = pa.BufferOutputStream()
    pq.write_table(pa.table({"url": ["of somebody else's table"]}), table)
    mine = table.getvalue().to_pybytes()
    (folder / own).parent.mkdir(parents=True, exist_ok=True)
    (folder / own).write_bytes(mine)
    before = sorted(folder.rglob("*"))
    for save in (TemplateLibrary.save, lambda library, folder: library.save_reference(folder, {})):
        with pytest.raises(InputError, match=f"{(folder / own).name}, and would be replaced whole"):
            save(TemplateLibrary(tuple(found)), folder)
    assert sorted(folder.rglob("*")) == before and (folder / own).read_bytes() == mine


def test_the_references_form_is_replaced_too(found, tmp_path):
    library = TemplateLibrary(tuple(found))
    library.save_reference(tmp_path / "templates", {})
    library.save_reference(tmp_path / "templates", {})
    library.save(tmp_path / "templates")
    assert len(TemplateLibrary.load(tmp_path / "templates").templates) == 4


def test_a_failed_save_leaves_the_old_library(found, tmp_path):
    folder = tmp_path / "templates"
    TemplateLibrary(tuple(found)).save(folder)
    broken = Template("broken", np.zeros((256, 256, 7), np.float32), found[0].mask, ("a",), "a")
    with pytest.raises(TypeError):
        TemplateLibrary((found[0], broken)).save(folder)
    assert len(TemplateLibrary.load(folder).templates) == 4


def test_unusable_templates_are_left_out_and_named(found, tmp_path):
    folder = tmp_path / "templates"
    TemplateLibrary(tuple(found)).save(folder)
    (folder / "masks" / "00000.png").unlink()
    Image.new("L", (256, 256), 0).save(folder / "masks" / "00001.png")
    (folder / "images" / "00002.png").write_bytes(b"damaged")
    loaded = TemplateLibrary.load(folder)
    assert [template.template_id for template in loaded.templates] == [found[3].template_id]
    reasons = [loaded.refused[template.template_id] for template in found[:3]]
    assert "inside" in reasons[0] and "covers 0%" in reasons[1] and "not a JPEG" in reasons[2]


def test_paths_outside_of_the_library_are_refused(found, tmp_path):
    folder = tmp_path / "templates"
    TemplateLibrary(tuple(found[:1])).save(folder)
    shutil.copy(folder / "masks" / "00000.png", tmp_path / "mask.png")
    row = pq.read_table(folder / "templates.parquet").to_pylist()[0] | {"mask_file": "../mask.png"}
    pq.write_table(pa.Table.from_pylist([row]), folder / "templates.parquet")
    assert TemplateLibrary.load(folder).templates == ()


def test_reference_layout_loads(found, tmp_path):
    folder = tmp_path / "templates"
    TemplateLibrary(tuple(found[:2])).save(folder)
    table = pq.read_table(folder / "templates.parquet").select(["mask_file", "img_file"])
    table = table.append_column("url", pa.array(["http://example.org/a.jpg", "http://example.org/b.jpg"]))
    pq.write_table(table, folder / "metadata.parquet")
    (folder / "templates.parquet").unlink()
    loaded = TemplateLibrary.load(folder)
    assert [template.members for template in loaded.templates] == [
        ("http://example.org/a.jpg",),
        ("http://example.org/b.jpg",),
    ]


def test_a_library_says_of_which_index_it_is(found, tmp_path):
    members = {member for template in found for member in template.members}
    TemplateLibrary(tuple(found), index_sha256="f" * 64).save(tmp_path / "told")
    told = TemplateLibrary.load(tmp_path / "told")
    assert told.gap("f" * 64, members) == ""
    assert "was not made from this index" in told.gap("0" * 64, members)
    TemplateLibrary(tuple(found)).save(tmp_path / "untold")
    untold = TemplateLibrary.load(tmp_path / "untold")
    assert untold.gap("0" * 64, members) == ""
    assert "was not made from this index" in untold.gap("0" * 64, members - {found[0].members[1]})
    (tmp_path / "told" / "masks" / "00000.png").unlink()
    assert "1 templates of the library were left out" in TemplateLibrary.load(tmp_path / "told").gap(
        "f" * 64, members
    )
    (tmp_path / "told" / "index.json").write_text("[]")
    with pytest.raises(InputError, match="is damaged"):
        TemplateLibrary.load(tmp_path / "told")


@pytest.mark.parametrize("fault", ["missing", "damaged"])
def test_library_that_cannot_be_read_is_one_sentence(fault, tmp_path):
    if fault == "damaged":
        (tmp_path / "templates.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError) as caught:
        TemplateLibrary.load(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_the_reference_form_goes_out_and_comes_in(found, tmp_path):
    library = TemplateLibrary(tuple(found))
    urls = {library.templates[0].image_id: "https://example.org/a.jpg"}
    library.save_reference(tmp_path / "out", urls)
    table = pq.read_table(tmp_path / "out" / "metadata.parquet")
    assert table.column_names == ["url", "mask_file", "img_file"]
    assert table["url"][0].as_py() == "https://example.org/a.jpg"
    again = TemplateLibrary.load(tmp_path / "out")
    for one, other in zip(library.templates, again.templates, strict=True):
        np.testing.assert_array_equal(one.mask, other.mask)
        np.testing.assert_allclose(one.image, other.image, atol=1 / 255)
    assert again.templates[0].image_id == "https://example.org/a.jpg" and again.index_sha256 is None


# Versions of masks


CORNER = Edit(Tool.RECTANGLE, False, ((0, 0), (64, 64)))


@pytest.fixture
def folder(found, tmp_path):
    TemplateLibrary(tuple(found)).save(tmp_path / "templates")
    return tmp_path / "templates"


def edited(folder, *edits, who="Ada", **load):
    """The library after one more edit of its first template, and the version that this made."""
    library = TemplateLibrary.load(folder, **load)
    name = library.templates[0].template_id
    version = library.save_mask(name, edits, who=who, versions=load.get("versions") or beside(folder))
    return TemplateLibrary.load(folder, load.get("versions")), version


def test_an_edited_mask_is_a_new_version_and_none_is_written_over(folder):
    automatic = TemplateLibrary.load(folder)
    name = automatic.templates[0].template_id
    first_library, first = edited(folder, CORNER)
    second_library, second = edited(folder, Edit(Tool.GROW, amount=2), who="Bo")
    assert (first.number, first.who, first.edits) == (1, "Ada", (CORNER,))
    assert (second.number, second.parent_sha256, second.base_sha256) == (2, first.sha256, first.base_sha256)
    assert first.parent_sha256 == first.base_sha256 == template_sha256(automatic.templates[0])
    assert datetime.fromisoformat(first.when) < datetime.fromisoformat(second.when)
    np.testing.assert_array_equal(
        first_library.templates[0].mask, apply(automatic.templates[0].mask, [CORNER])
    )
    np.testing.assert_array_equal(second_library.templates[0].mask, second.mask)
    assert len({automatic.sha256, first_library.sha256, second_library.sha256}) == 3
    for number, library in enumerate((automatic, first_library, second_library)):
        again = TemplateLibrary.load(folder, numbers={name: number})
        assert again.sha256 == library.sha256
        assert [each.number for each in again.versions.values()] == ([number] if number else [])
    history, faults = versions(beside(folder), automatic.templates[0])
    assert [each.who for each in history] == ["Ada", "Bo"] and faults == []
    with pytest.raises(InputError, match=r"no version 3 .* there are 1, 2"):
        TemplateLibrary.load(folder, numbers={name: 3})


def test_an_edit_of_an_older_version_says_on_what_it_was_made(folder):
    _, first = edited(folder, CORNER)
    edited(folder, Edit(Tool.GROW, amount=2))
    name = first.template_id
    _, third = edited(folder, Edit(Tool.SHRINK, amount=1), numbers={name: 1})
    _, fourth = edited(folder, Edit(Tool.SHRINK, amount=1), numbers={name: 0})
    assert (third.number, third.parent_sha256) == (3, first.sha256)
    assert (fourth.number, fourth.parent_sha256) == (4, first.base_sha256)


FOUND = Edit(Tool.FOUND)


def test_a_mask_drawn_from_the_one_as_found_is_the_next_version_and_replayed_from_its_file(folder):
    automatic = TemplateLibrary.load(folder)
    name, as_found = automatic.templates[0].template_id, automatic.templates[0].mask
    assert automatic.found == {}
    library, first = edited(folder, CORNER)
    np.testing.assert_array_equal(library.found[name], as_found)
    shrunk = Edit(Tool.SHRINK, amount=1)
    library, second = edited(folder, FOUND, shrunk, who="Bo")
    assert (second.number, second.parent_sha256) == (2, first.sha256)
    np.testing.assert_array_equal(second.mask, apply(as_found, [shrunk]))
    _, third = edited(folder, CORNER, who="Bo")
    history, faults = versions(beside(folder), automatic.templates[0])
    assert [each.sha256 for each in history] == [first.sha256, second.sha256, third.sha256] and faults == []
    mask = as_found
    for version in history:
        mask = apply(mask, version.edits, found=as_found)
        np.testing.assert_array_equal(mask, version.mask)
    with pytest.raises(InputError, match="Nothing was edited"):
        edited(folder, FOUND)


def test_versions_that_hold_nobody_elses_drawing(folder):
    grow = Edit(Tool.GROW, amount=1)
    made = [
        ("Ada", (CORNER,)),  # 1: on the mask as it was found
        ("Ada", (grow,)),  # 2: on her own
        ("Bo", (grow,)),  # 3: on hers
        ("Bo", (grow,)),  # 4: on his own, which is on hers
        ("Ada", (grow,)),  # 5: on his
        ("Bo", (FOUND, CORNER, grow)),  # 6: from the mask as it was found; the same mask as version 2
        ("Bo", (grow,)),  # 7: on his own
        ("Ada", (FOUND, grow)),  # 8
    ]
    for who, edits in made:
        edited(folder, *edits, who=who)
    history, _ = versions(beside(folder), TemplateLibrary.load(folder, numbers=none(folder)).templates[0])
    assert history[1].sha256 == history[5].sha256
    assert [each.number for each in drawn_alone(history)] == [1, 2, 6, 7, 8]
    # nobody knows whose the missing ones were
    assert [each.number for each in drawn_alone(history[1:])] == [6, 7, 8]
    assert drawn_alone([]) == []


def none(folder):
    """Asks a library for the masks as they were found."""
    return dict.fromkeys(TemplateLibrary.load(folder).versions, 0)


def test_a_version_whose_start_is_no_first_step_is_damaged(folder):
    _, version = edited(folder, CORNER)
    path = beside(folder) / version_path(version.template_id, 1)
    content = json.loads(path.read_text())
    content["edits"].append({"tool": "found"})
    path.write_text(json.dumps(content))
    library = TemplateLibrary.load(folder)
    assert not library.versions and len(library.refused) == 1


def test_a_library_made_again_keeps_the_versions_of_the_same_masks(found, folder):
    _, version = edited(folder, CORNER)
    TemplateLibrary(tuple(found)).save(folder)
    assert TemplateLibrary.load(folder).versions[version.template_id].sha256 == version.sha256
    other = replace(found[0], mask=apply(found[0].mask, [Edit(Tool.SHRINK, amount=3)]))
    TemplateLibrary((other, *found[1:])).save(folder)
    again = TemplateLibrary.load(folder)
    assert again.versions == {} and again.refused == {}
    np.testing.assert_array_equal(again.templates[0].mask, other.mask)


def test_an_edited_mask_changes_the_masked_distance_of_its_family_as_computed_by_hand(found, folder):
    """A member is painted where the family is unchanged: excluded by hand, the painted part counts no more."""
    automatic = TemplateLibrary.load(folder)
    for number, template in enumerate(automatic.templates):
        painted = template.image.copy()
        painted[200:232, 16:80] = 1 - painted[200:232, 16:80]
        apart = ((template.image - painted).astype(np.float64) ** 2).sum(-1)
        edits = [Edit(Tool.RECTANGLE, False, ((16, 200), (48, 232)))]
        automatic.save_mask(template.template_id, edits, who="Ada", versions=beside(folder))
        after = template.mask.copy()
        after[200:232, 16:48] = False
        relabelled = TemplateLibrary.load(folder).templates[number]
        np.testing.assert_array_equal(relabelled.mask, after)
        distances = [float(masked_sse(each.image, each.mask, painted)) for each in (template, relabelled)]
        by_hand = [apart[mask].sum() / (mask.sum() / 65_536) for mask in (template.mask, after)]
        assert distances == pytest.approx(by_hand, rel=1e-5)
        assert distances[1] < 0.8 * distances[0]


def test_what_lies_beside_the_versions_is_none_of_them(folder):
    library, version = edited(folder, CORNER)
    (path,) = beside(folder).rglob("*.json")
    for name in ("00001 (conflict).json", "1a.json", "00002.json.orig"):
        shutil.copy(path, path.with_name(name))
    again = TemplateLibrary.load(folder)
    assert again.refused == {} and list(again.versions) == list(library.versions)
    assert edited(folder, CORNER)[1].number == version.number + 1


def test_versions_may_lie_in_a_folder_of_their_own(folder, tmp_path):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    library, _ = edited(folder, CORNER, versions=tmp_path / "overlay")
    assert library.versions and not TemplateLibrary.load(folder).versions
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("edits", "who", "reason"),
    [
        ([], "Ada", "Nothing was edited"),
        ([CORNER], "  ", "give a name"),
        ([CORNER], "a" * 201, "give a name"),
        ([Edit(Tool.RECTANGLE, False, ((0, 0), (256, 256)))], "Ada", "covers 0%"),
    ],
)
def test_what_is_no_version_is_refused(folder, edits, who, reason):
    with pytest.raises(InputError, match=reason):
        edited(folder, *edits, who=who)
    assert not list(beside(folder).rglob("*.json"))
    with pytest.raises(InputError, match="no template 'x'"):
        TemplateLibrary.load(folder).save_mask("x", [CORNER], who="Ada", versions=beside(folder))


@pytest.mark.parametrize("harm", ["cut", "mask", "edits", "deep", "sha256", "other"])
def test_a_damaged_version_is_told_and_the_one_before_it_taken(folder, harm):
    _, first = edited(folder, CORNER)
    _, second = edited(folder, Edit(Tool.GROW, amount=2))
    path = next(beside(folder).rglob("00002.json"))
    content = json.loads(path.read_text())
    texts = {
        "cut": path.read_text()[:200],
        "mask": json.dumps(content | {"mask": content["mask"][:100]}),
        "edits": json.dumps(content | {"edits": [{"tool": "eval"}]}),
        "deep": "[" * 100_000,
        "sha256": json.dumps(
            content | {"mask": json.loads(path.with_name("00001.json").read_text())["mask"]}
        ),
        "other": json.dumps(content | {"template_id": "other"}),
    }
    path.write_text(texts[harm])
    library = TemplateLibrary.load(folder)
    assert library.versions[first.template_id].sha256 == first.sha256 != second.sha256
    (reason,) = library.refused.values()
    assert "Version 00002" in reason and "damaged" in reason
    assert "left out" in library.gap("", ())


def test_a_name_of_a_template_is_no_path(found, tmp_path):
    folder = tmp_path / "a" / "templates"
    folder.parent.mkdir()
    TemplateLibrary((replace(found[0], template_id="../../\0\ud800x"),)).save_mask(
        "../../\0\ud800x", [CORNER], who="Ada", versions=beside(folder)
    )
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert len(list(beside(folder).rglob("00001.json"))) == 1


def writer(folder, who, count):
    for _ in range(count):
        edited(folder, CORNER, who=who)


def test_two_writers_at_once_lose_nothing(folder):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=writer, args=(folder, who, 8)) for who in ("Ada", "Bo")]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
    name = next(iter(TemplateLibrary.load(folder).versions))
    automatic = TemplateLibrary.load(folder, numbers={name: 0}).templates[0]
    history, faults = versions(beside(folder), automatic)
    assert faults == [] and [each.number for each in history] == list(range(1, 17))
    assert Counter(each.who for each in history) == {"Ada": 8, "Bo": 8}


def test_a_writer_killed_at_any_instant_leaves_whole_versions(folder):
    context = multiprocessing.get_context("spawn")
    for attempt in range(2):
        process = context.Process(target=writer, args=(folder, f"{attempt}", 10_000))
        process.start()
        before = len(list(beside(folder).rglob("0*.json")))
        while len(list(beside(folder).rglob("0*.json"))) < before + 3 and process.is_alive():
            time.sleep(0.001 * (attempt + 1))
        process.kill()
        process.join()
        library = TemplateLibrary.load(folder)
        assert library.refused == {} and len(library.versions) == 1
    count = len(list(beside(folder).rglob("0*.json")))
    assert count >= 6
    _, version = edited(folder, CORNER)
    assert version.number == count + 1


def test_the_demo_library_is_as_it_was():
    library = TemplateLibrary.load(DEMO / "templates", versions_of(DEMO / "templates"))
    assert library.refused == {}
    assert template_sha256(*library.templates) == library.sha256
    assert not versions_of(DEMO / "templates").is_relative_to(DEMO)


def test_versions_of_what_cannot_be_written_to_lie_among_our_data(tmp_path):
    (tmp_path / "open").mkdir()
    assert versions_of(tmp_path / "open" / "templates") == tmp_path / "open" / "templates.versions"
    assert versions_of(tmp_path / "missing" / "templates").is_relative_to(settings().data_dir)
