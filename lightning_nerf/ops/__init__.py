"""Stateless functions on tensors, one file per op; each file is the op's contract."""
