"""The command line: arguments in, library calls, text or JSON out. The only place that prints or picks exit codes."""
