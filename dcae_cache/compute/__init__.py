"""Devices, memory and the numbers between them: what every piece of work on a device needs, whatever the work is."""
