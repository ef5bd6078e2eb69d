"""The room `interop`."""
