"""The command `funcnet`, and the parts that all commands of this repository share."""
