"""Data modules: they hold posed images and draw rays from them on any device; the loaders yield only numbers."""
