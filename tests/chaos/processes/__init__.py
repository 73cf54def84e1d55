"""The product's own processes, composed with one part that can be made to fail while they run.

What fails is turned on by files in the folder that CHAOS_SWITCHES names; each process has its own.
"""
