"""The iterations: one loop for every method, which differ in their prior alone."""
