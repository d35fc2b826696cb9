"""What is used of the inside of dependencies, a module for each: why, and what breaks if it changes."""
