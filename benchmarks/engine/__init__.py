"""The engine against its competitors: `make bench-engine`. See README.md here for the rules."""
