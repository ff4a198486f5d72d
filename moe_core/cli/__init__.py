"""The command line: parser, one handler per command, output. Imported by main.py only; nothing heavy at import."""
