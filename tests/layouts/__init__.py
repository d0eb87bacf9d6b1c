"""Every parallel layout against one process: same losses, same gradients, same weights."""
