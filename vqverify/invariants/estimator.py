"""Rows of this subject are being written."""
