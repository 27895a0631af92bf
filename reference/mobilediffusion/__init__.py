"""PyTorch twin of the MobileDiffusion runtime, with equal modules, names and numbers, for training and golden files."""
