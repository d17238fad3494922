"""The acts of the demo, one file each; `e2e.demo.__main__` gives their order."""
