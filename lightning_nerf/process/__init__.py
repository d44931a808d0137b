"""``lightning-nerf process``: photos or a video to camera poses."""
