"""Small tools that every floor uses: errors, paths, random streams, checkpoints, files and processes."""
