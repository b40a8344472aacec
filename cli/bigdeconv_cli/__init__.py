"""The command line of bigdeconv: it parses and prints."""
