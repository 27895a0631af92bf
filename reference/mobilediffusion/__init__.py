"""PyTorch twin of the MobileDiffusion runtime: the same modules, names and numbers, for training and golden files."""
