"""Home: what is in use, and what to do."""


def test_says_what_it_is_and_what_is_in_use(app, words):
    page = app()
    assert not page.exception
    text = words(page)
    assert "whether one of them came back as a copy" in text
    assert "30 pictures with captions" in text
    assert "4 of them in 1 family of near-duplicates · 1 template known" in text
    assert "Pictures of 32×32 px" in text


def test_claims_stand_on_every_page(app, words):
    for name in ("", "prompt_lab", "training_set"):
        text = words(app(name))
        for claim in ("retrieved", "verified", "confirmed"):
            assert claim in text, (name, claim)


def test_a_model_that_cannot_be_loaded_is_told_and_the_page_goes_on(app, environment, tmp_path, words):
    environment.setenv("VERBATIM_MODEL", str(tmp_path / "nowhere"))
    from audit.settings import settings

    settings.cache_clear()
    page = app()
    assert not page.exception
    assert any("There is no model folder" in error.value for error in page.error)
    assert "30 pictures with captions" in words(page)


def test_an_index_that_cannot_be_opened_is_told_and_the_page_goes_on(app, environment, tmp_path):
    environment.setenv("VERBATIM_INDEX", str(tmp_path / "nowhere"))
    from audit.settings import settings

    settings.cache_clear()
    page = app()
    assert not page.exception
    assert any("no index folder" in error.value for error in page.error)


def test_model_choice_can_be_switched_off(app, environment):
    from audit.settings import settings

    assert any(button.label == "Load for everybody" for button in app().button)
    environment.setenv("VERBATIM_MODEL_CHOICE", "0")
    settings.cache_clear()
    assert not any(button.label == "Load for everybody" for button in app().button)


def test_another_model_is_loaded_and_a_bad_one_leaves_the_first_in_use(app, tiny_v_pipeline_dir, tmp_path):
    from audit.ui import bench

    page = app()
    first = bench.target().sha256
    (tmp_path / "empty").mkdir()
    page.segmented_control(key="model-kind").set_value("Folder").run()
    page.text_input(key="model-folder").set_value(str(tmp_path / "empty"))
    page = next(button for button in page.button if button.label == "Load for everybody").click().run()
    app.wait()
    page.run()
    assert any("has no unet/" in error.value.replace("\\", "") for error in page.error)
    assert bench.target().sha256 == first

    page.text_input(key="model-folder").set_value(str(tiny_v_pipeline_dir))
    next(button for button in page.button if button.label == "Load for everybody").click().run()
    app.wait()
    page.run()
    assert bench.target().sha256 != first
    assert not page.error


def test_a_link_of_another_model_is_told_not_obeyed(app, words):
    from audit.ui import bench

    app()
    loading, loaded = bench.owner().holding[bench.MODEL], bench.target()
    page = app(model="/etc/evil")
    assert "This link was made with the model" in words(page)
    assert bench.target() is loaded
    assert bench.owner().holding[bench.MODEL] is loading


def test_a_model_that_was_replaced_is_forgotten(app, tiny_pipeline_dir, tiny_v_pipeline_dir):
    """Frozen for the collector, what refers to itself would stay for good."""
    import weakref

    from audit.ui import bench

    app()
    first = bench.target()
    first.itself = first
    gone = weakref.ref(first)
    del first
    for folder in (tiny_v_pipeline_dir, tiny_pipeline_dir):
        bench.load_model(bench.owner(), str(folder), "Ada").future.result(60)
    assert gone() is None
