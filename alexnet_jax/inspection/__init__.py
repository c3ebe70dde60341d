"""What a trained network has learned (paper, section 6.1): features, nearest images, codes, the page of a run."""
