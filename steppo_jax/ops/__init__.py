"""Pure functions over tokens, steps, trajectories and groups."""
