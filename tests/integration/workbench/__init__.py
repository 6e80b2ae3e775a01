"""The workbench from files to files: calibrating, evaluating, comparing."""
