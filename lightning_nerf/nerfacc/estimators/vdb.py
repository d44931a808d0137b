"""NerfAcc's estimator on fVDB grids: not here. Importing this module is an error that says so."""

raise ImportError(
    "lightning_nerf.nerfacc has no VDBEstimator and no traverse_vdbs: fVDB grids are out of its scope. "
    "OccGridEstimator with several levels covers large scenes."
)
