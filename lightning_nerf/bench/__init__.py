"""``lightning-nerf bench``: what an op, a step, a run and a frame cost, as tables and JSON."""
