"""Batch audits: start a run over a file of captions, and see how all runs are going."""

from audit.ui import batch, frame, model_sidebar

frame.through_app()
frame.heading(
    "Batch audits",
    "Score a whole list of captions, of any length, and generate in full those that score highest. A run works in a "
    "process of its own: it goes on when you close this page, and after a crash it goes on where it was.",
)
model_sidebar.check_link()
batch.new()
batch.listing()
