"""Data sets before training: annotations made, checked and counted; captions and clips encoded ahead."""
