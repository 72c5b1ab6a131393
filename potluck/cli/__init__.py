"""The `potluck` command: one file per noun, each loaded only when it is asked for."""
