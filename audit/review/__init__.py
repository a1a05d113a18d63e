"""People decide: a queue of captions, labels as chained events, and who may do what."""
