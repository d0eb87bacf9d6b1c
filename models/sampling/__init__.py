"""What a user asks a sampler for: prompts with scores and loops, conditioning frames, sizes and names of results."""
