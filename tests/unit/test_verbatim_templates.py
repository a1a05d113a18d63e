"""Template families drawn for the test: found among other pictures, masked, saved and loaded."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw, ImageFont

from audit.errors import InputError
from audit.images import resize
from audit.records import Template
from audit.verbatim.distances import sse
from audit.verbatim.masks import changed_iou
from audit.verbatim.templates import TemplateLibrary, discover

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
    assert seen[-1] == (len(names), len(names))


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
