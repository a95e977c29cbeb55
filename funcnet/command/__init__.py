"""The command `funcnet`, and what all commands of this repository share."""
