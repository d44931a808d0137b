"""Estimators: where along rays to place samples."""
