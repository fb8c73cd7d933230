"""Text environments. Importing this package imports no JAX."""
