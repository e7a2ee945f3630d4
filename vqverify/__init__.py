"""Property-based verification of vector-quantization layers in PyTorch."""

__version__ = "0.1.0"
