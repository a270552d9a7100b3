"""The boundary to C: the only package that imports ``nearlite._ffi``, one module per C area."""
