"""The room `certify`."""
