"""Labelled data → trained adapter → evaluation → published version."""
