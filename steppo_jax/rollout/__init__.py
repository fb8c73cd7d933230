"""The host-side environment loop. Importing it imports no JAX."""
