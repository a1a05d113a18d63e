"""The model and the training set in use, and the means to load another model, in the sidebar."""

from __future__ import annotations

import streamlit as st

from audit.errors import InputError
from audit.settings import settings
from audit.targets.catalogue import KNOWN
from audit.ui import bench, trail, url
from audit.ui.guard import show_error
from audit.ui.text import count, escape, literal, shorten
from audit.ui.waiting import failure, progress_text

WRITTEN = "model written into the address"
KINDS = ("Known model", "Folder", "Hub name")


def show() -> None:
    """Model, training set, and who may change what."""
    owner = bench.owner()
    with st.sidebar:
        _model(owner)
        _training_set(owner)
        st.toggle(
            "Blur pictures",
            value=settings().blur,
            key="blur",
            help="Training sets hold pictures that not everybody wants to see. Blurred ones never leave the server sharp.",
        )


def _model(owner) -> None:
    target = bench.target()
    job = owner.holding[bench.MODEL]
    st.subheader("Model", anchor=False)
    if not job.future.done():
        _loading(owner, job)
    elif (error := failure(job)) is not None:
        show_error(error)
    if target is None:
        if job.future.done():
            literal("No model is loaded.")
    else:
        literal(KNOWN[target.name].title if target.name in KNOWN else target.name, style="body")
        literal(
            f"{target.image_size}×{target.image_size} px · {target.prediction} prediction · "
            f"{str(target.dtype).removeprefix('torch.')} on {target.device}"
        )
        literal(f"sha256 {target.sha256[:12]}…")
    if settings().model_choice:
        with st.expander("Use another model", icon=":material/swap_horiz:"):
            _choose(owner)


@st.fragment(run_every=1.0)
def _loading(owner, job) -> None:
    # One poll a second and tab: more of them, from many tabs, would take the time that the import needs.
    if job.future.done():
        st.rerun()
    st.progress(job.share, progress_text(owner, job))


def wait_for_model() -> None:
    """In a page that needs the model: what is going on with it."""
    owner = bench.owner()
    job = owner.holding[bench.MODEL]
    if not job.future.done():
        st.caption("The model is being loaded. This page goes on by itself.")
    else:
        st.info("No model is loaded; choose one in the sidebar.", icon=":material/left_panel_open:")


def wait_for_training_set() -> None:
    """In a page that needs the training set: what is going on with it."""
    owner = bench.owner()
    job = owner.holding[bench.TRAINING_SET]
    if not job.future.done():
        st.caption("The training set is being opened. This page goes on by itself.")
    else:
        st.info(
            "No training set is open. Build an index with `python -m audit index build SOURCE --out INDEX` and name it "
            "in VERBATIM_INDEX.",
            icon=":material/info:",
        )


def _choose(owner) -> None:
    kind = st.segmented_control("Kind", KINDS, default=KINDS[0], required=True, key="model-kind")
    with st.form("choose-model", border=False):
        if kind == "Known model":
            name = st.selectbox(
                "Model", list(KNOWN), format_func=lambda known: KNOWN[known].title, key="model-known"
            )
        elif kind == "Folder":
            name = st.text_input(
                "Folder on this server", placeholder="/models/my-model", max_chars=400, key="model-folder"
            )
        else:
            name = st.text_input("Name on the hub", placeholder="owner/model", max_chars=400, key="model-hub")
        asked = st.form_submit_button("Load for everybody", icon=":material/download:", width="stretch")
    st.caption("One model is loaded at a time, for all who use this dashboard.")
    if asked:
        ask_for(owner, (name or "").strip())


def ask_for(owner, name: str) -> None:
    """Begin to load a model by name and show the page anew."""
    if not url.MODEL_NAME.fullmatch(name):
        show_error(InputError("There is no model name yet; type a folder or a name such as owner/model."))
        return
    bench.load_model(owner, name, trail.name())
    st.rerun()


def _training_set(owner) -> None:
    st.subheader("Training set", anchor=False)
    have = bench.training_set()
    job = owner.holding[bench.TRAINING_SET]
    if have is not None:
        templates = f" · {count(len(have.templates), 'template', 'templates')}" if have.templates else ""
        literal(f"{len(have.index):,} pictures{templates}", style="body")
    elif job.future.done():
        if (error := failure(job)) is not None:
            show_error(error)
    elif owner.holding[bench.MODEL].future.done():
        _loading(owner, job)
    else:
        literal("Opening …")


def check_link() -> None:
    """Tell people whose link names another model than the one in use; note the model's name in the address."""
    target = bench.target()
    if target is None:
        return
    asked = url.read_model({"model": st.query_params.get_all("model")})
    if asked in (None, target.name, st.session_state.get(WRITTEN)):
        if asked not in (None, target.name):
            st.info(
                f"The model in use was changed from {escape(shorten(asked))} to {escape(target.name)}, for everybody here.",
                icon=":material/swap_horiz:",
            )
        _write(target.name)
        return
    with st.container(border=True):
        st.markdown(
            f":material/link: This link was made with the model **{escape(shorten(asked))}**; in use is "
            f"**{escape(target.name)}**. What you see below comes from the model in use."
        )
        with st.container(horizontal=True):
            if settings().model_choice:
                if st.button("Load the link's model for everybody"):
                    ask_for(bench.owner(), asked)
            else:
                st.markdown("Whoever runs this server can load it.")
            st.button("Stay with the model in use", on_click=_write, args=(target.name,))


def _write(name: str) -> None:
    st.session_state[WRITTEN] = name
    st.query_params["model"] = name
