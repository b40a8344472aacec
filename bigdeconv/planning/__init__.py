"""Planning in pure Python: numbers in, frozen plans out.  No arrays, no files, no third-party packages."""
