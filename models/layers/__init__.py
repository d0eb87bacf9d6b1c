"""Building blocks of the transformers: thin Cells whose parameters carry PyTorch's names and shapes."""
