"""The payload: the MindSpore package that trains and samples. Never imports the control plane."""
