"""``lightning-nerf render``: pictures and films of a trained scene."""
