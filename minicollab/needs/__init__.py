"""What a recipe needs of a machine: files, memory, disk and time, known before it runs."""
