"""Every op of the library, by name: CI checks that each has a schema, a CPU kernel and a CUDA kernel."""

OPS = [
    "composite",
    "composite_backward",
    "draw_rays",
    "hash_grid",
    "hash_grid_backward",
    "march_count",
    "march_write",
    "occupancy_newest",
    "occupancy_points",
    "occupancy_select",
    "occupancy_update_",
    "pack_offsets",
    "random_uniform",
    "ray_aabb",
    "sample_points",
    "spherical_harmonics",
    "spherical_harmonics_backward",
    "visibility_count",
    "visibility_write",
]
