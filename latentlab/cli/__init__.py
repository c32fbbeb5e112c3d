"""The command line: `main` puts the commands together, each lives in a file of its own."""
