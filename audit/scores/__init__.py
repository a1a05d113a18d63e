"""Is the caption memorised: one file a score, each with value and heatmap, and their calibration."""
