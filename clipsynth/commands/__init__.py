"""The commands of `clipsynth`, a file for each family. They are the composition root with `cli.py`: they may import every floor, lazily."""
