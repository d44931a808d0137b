"""Every op of the library, by name: CI checks that each has a schema, a CPU kernel and a CUDA kernel."""

OPS: list[str] = []
