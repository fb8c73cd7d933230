"""Games of other packages behind one adapter; each needs an extra."""
