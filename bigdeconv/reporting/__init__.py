"""Reports: the state of a run, its seam certificate, and a page that shows what it did."""
