"""The network (paper, section 3): its layers, its towers, its sizes."""
