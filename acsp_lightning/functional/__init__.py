"""The mathematics of the method on plain tensors: no modules, no Lightning, no global random state."""
