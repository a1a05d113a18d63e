"""Home: what this is, what is in use, and three captions to begin with."""

from audit.ui import frame, home, model_sidebar

frame.through_app()
frame.heading(
    "Which training images does this model give back?",
    "Verbatim asks an image generator for a caption, compares what it draws with the pictures it was trained on, and "
    "says, with every number that decided it, whether one of them came back as a copy.",
)
model_sidebar.check_link()
home.in_use()
home.prepared()
home.next_steps()
