"""What tests share: inputs made on the spot, servers on loopback, the command run as a user runs it."""
