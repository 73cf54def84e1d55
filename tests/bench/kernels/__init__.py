"""Compute kernels in C, each built natively and for WASI, and what the sandbox costs them."""
