"""A real control plane, real processes and real clients, all on this machine."""
