"""``python -m dcae_cache``: the command line. A part of it in all but its place, which Python prescribes."""

from importlib import import_module

if __name__ == "__main__":
    import_module("dcae_cache.cli.main").main()
