"""The version of NerfAcc whose interface this is."""

__version__ = "0.5.3"
