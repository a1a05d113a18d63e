"""Is the generated image a copy: distances, masks, templates, verdict."""
