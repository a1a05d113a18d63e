"""Audits of one caption and of many: composition of targets, scores, retrieval and verdicts."""
