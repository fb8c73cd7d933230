"""Token sampling with a key-value cache per trajectory."""
