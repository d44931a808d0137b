"""Neural radiance fields for PyTorch Lightning, on one fast CPU and CUDA backend."""
